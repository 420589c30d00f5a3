// RETURN_IF_ERROR and ASSIGN_OR_RETURN: propagation of absl::Status without exceptions.
//
//   RETURN_IF_ERROR(store.Sync());
//   ASSIGN_OR_RETURN(auto record, store.Get(key));

#ifndef MNEME_COMMON_STATUS_MACROS_H_
#define MNEME_COMMON_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define MNEME_CONCAT_INNER_(a, b) a##b
#define MNEME_CONCAT_(a, b) MNEME_CONCAT_INNER_(a, b)

#define RETURN_IF_ERROR(expr)                                                           \
  do {                                                                                  \
    if (absl::Status mneme_status_ = (expr); !mneme_status_.ok()) return mneme_status_; \
  } while (false)

#define MNEME_ASSIGN_OR_RETURN_(tmp, lhs, expr)  \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return std::move(tmp).status(); \
  lhs = *std::move(tmp)

#define ASSIGN_OR_RETURN(lhs, ...) \
  MNEME_ASSIGN_OR_RETURN_(MNEME_CONCAT_(mneme_or_, __LINE__), lhs, (__VA_ARGS__))

#endif  // MNEME_COMMON_STATUS_MACROS_H_
