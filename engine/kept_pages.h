// KeptPages: the pages that readers attended to in the last few batches, still pinned: the next
// tokens mostly read the same chunks, and to pin one is dearer than to find it here. What was
// deleted, or has other pages since, is not found here any more.

#ifndef MNEME_ENGINE_KEPT_PAGES_H_
#define MNEME_ENGINE_KEPT_PAGES_H_

#include <cstdint>
#include <deque>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/page_source.h"
#include "memory_store/memory_store.h"

namespace mneme {

// Owned by the batch thread. `source` must outlive it.
class KeptPages {
 public:
  explicit KeptPages(PageSource& source) : source_(source) {}

  // The pages of these chunks, of which some may be the same, until the next call; null where the
  // reader goes on without (ReaderPages). `weights`: that readers give to each. Errors of
  // PageSource::Pin, when not even these alone can be pinned.
  absl::Status Find(absl::Span<const ChunkAddress> chunks, absl::Span<const float> weights,
                    std::vector<const uint8_t*>* pages);
  // The pages are memory of the device.
  bool resident() const { return resident_; }
  // Unpins what one batch pinned together with a page of a document whose pages changed or went
  // since the last call: a question asked after that must not read it, and whoever deleted it waits
  // for the pins. To be called at every batch, of readers that read no pages too; Find does.
  void DropChanged();
  // Unpins all.
  void Drop();

 private:
  // A page is pinned for so many calls, then found anew: what a tier knows of use stays true.
  static constexpr int64_t kCalls = 16;
  // Pages that are kept beside those of the present call, at most.
  static constexpr size_t kPagesMax = 4096;

  // Pages that one call pinned.
  struct Group {
    PinnedPages pinned;
    std::vector<ChunkAddress> chunks;
    int64_t call = 0;
  };

  void DropOldest();
  // Fills the empty places of `pages`.
  absl::Status FindMissing(absl::Span<const ChunkAddress> chunks, absl::Span<const float> weights,
                           std::vector<const uint8_t*>* pages);

  PageSource& source_;
  absl::flat_hash_map<ChunkAddress, const uint8_t*> found_;  // those of groups_
  std::deque<Group> groups_;                                 // oldest first
  std::vector<ChunkAddress> missing_;                        // of the present call, each once
  std::vector<float> missing_mass_;                          // of each, over all who read it
  int64_t calls_ = 0;
  uint64_t changes_seen_ = 0;
  bool resident_ = false;
};

}  // namespace mneme

#endif  // MNEME_ENGINE_KEPT_PAGES_H_
