// ChangeLog: how far back the changes of a memory reach, so that what was made of its past is known
// to be as good as new (view_cache.h).

#ifndef MNEME_MEMORY_STORE_CHANGE_LOG_H_
#define MNEME_MEMORY_STORE_CHANGE_LOG_H_

#include <cstddef>
#include <cstdint>

#include "absl/container/btree_map.h"
#include "absl/time/time.h"

namespace mneme {

// Thread-compatible: guarded by its owner's lock. Bounded: what is far back is told apart less
// finely.
class ChangeLog {
 public:
  // What is seen of the memory up to `from` or later is no longer what it was.
  void Add(absl::Time from);
  // A number that differs from an earlier one when what is seen up to `until` may have changed.
  uint64_t Version(absl::Time until) const;

 private:
  static constexpr size_t kEntriesMax = 1024;

  absl::btree_map<absl::Time, uint64_t> versions_;  // the last change that reaches back so far
  uint64_t last_ = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_CHANGE_LOG_H_
