// For programs without a caller to tell: the value, or the end with what went wrong on stderr.

#ifndef MNEME_BENCH_OR_DIE_H_
#define MNEME_BENCH_OR_DIE_H_

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace mneme::bench {

inline void OrDie(const absl::Status& status) {
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    std::exit(1);
  }
}

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  OrDie(value.status());
  return *std::move(value);
}

}  // namespace mneme::bench

#endif  // MNEME_BENCH_OR_DIE_H_
