// PageChanges: which documents have other pages than before. A segment that grew, or that lost its
// end, has other pages under the same chunk addresses, and one that was deleted has none: who keeps
// pages by address from one read to the next asks here which of them are not the chunk's any more.

#ifndef MNEME_MEMORY_STORE_PAGE_CHANGES_H_
#define MNEME_MEMORY_STORE_PAGE_CHANGES_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "memory_store/ids.h"

namespace mneme {

// Thread-safe.
class PageChanges {
 public:
  // One change, of all these documents. Before any view shows it.
  void Add(const absl::flat_hash_set<DocumentId>& documents);
  // How many there were. A view taken before this call shows none but these.
  uint64_t count() const { return count_.load(std::memory_order_acquire); }
  // Documents of the changes behind the first `count`; nothing when that is too long ago to know.
  std::optional<absl::flat_hash_set<DocumentId>> Since(uint64_t count) const;

 private:
  static constexpr size_t kDocumentsMax = 4096;

  std::atomic<uint64_t> count_{0};
  mutable absl::Mutex mutex_;
  // By number of their change, oldest first.
  std::deque<std::pair<uint64_t, DocumentId>> documents_ ABSL_GUARDED_BY(mutex_);
  uint64_t forgotten_ ABSL_GUARDED_BY(mutex_) = 0;  // changes up to this one are not all here
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_PAGE_CHANGES_H_
