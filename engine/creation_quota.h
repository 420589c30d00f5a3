// CreationQuota: how many children a parent may have, with creations that are under way counted, so
// that a limit holds though each creation waits for the disk.

#ifndef MNEME_ENGINE_CREATION_QUOTA_H_
#define MNEME_ENGINE_CREATION_QUOTA_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/cleanup/cleanup.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

namespace mneme {

// Thread-safe.
class CreationQuota {
 public:
  // Runs `create` unless `parent` has `limit` children already: then RESOURCE_EXHAUSTED, with
  // `what` naming them. `count` tells the children there are, from memory.
  template <typename T>
  absl::StatusOr<T> Create(const std::string& parent, absl::string_view what, int64_t limit,
                           const std::function<int64_t()>& count,
                           const std::function<absl::StatusOr<T>()>& create) {
    {
      absl::MutexLock lock(&mutex_);
      int64_t& under_way = under_way_[parent];
      const int64_t children = count() + under_way;
      if (children >= limit) {
        return absl::ResourceExhaustedError(
            absl::StrCat(parent, " has ", children, " ", what, "; limit ", limit));
      }
      ++under_way;
    }
    const absl::Cleanup done = [&] {
      absl::MutexLock lock(&mutex_);
      if (--under_way_[parent] == 0) under_way_.erase(parent);
    };
    return create();
  }

 private:
  absl::Mutex mutex_;
  absl::flat_hash_map<std::string, int64_t> under_way_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_ENGINE_CREATION_QUOTA_H_
