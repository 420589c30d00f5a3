// A tier of pages in memory, of the host or of a device: a fixed number of slots of one page each,
// never more, filled from a slower tier on demand and, in the host's, by ingest. Which page leaves
// when a slot is needed is decided by attention mass: the weight that readers gave a page, summed
// over their reads, and a little for each read. The shape is W-TinyLFU's (Einziger, Friedman and
// Manes, "TinyLFU: a highly efficient cache admission policy", ACM TOS 2017) with mass in place of
// counts. Pages enter a small queue; at its end one comes into the main queue if it has at least
// the mass of the page that would leave there for it, and goes otherwise. So a scan, which weighs
// each page once, or a flood of freshly ingested pages, which nobody has weighed, never displaces
// what queries use; among equals the newer stays. In the main queue the lightest of the few oldest
// leaves. Mass halves with every so many pages found here, not with time or with pages that come
// and go: what is hot stays hot while somebody scans. A page that comes back soon after it left has
// its mass again (ghosts remember it). Pinned pages are in neither queue and go back to the head of
// theirs when unpinned.

#ifndef MNEME_MEMORY_STORE_PAGE_POOL_H_
#define MNEME_MEMORY_STORE_PAGE_POOL_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "common/metrics.h"
#include "kernels/buffer.h"
#include "memory_store/ids.h"

namespace mneme {

// One version of one chunk's page: a segment that grew has other pages.
struct PageId {
  DocumentId document{};
  int64_t segment_index = 0;
  int64_t segment_byte_end = 0;
  int64_t chunk_in_segment = 0;

  friend bool operator==(const PageId&, const PageId&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const PageId& id) {
    return H::combine(std::move(h), static_cast<uint64_t>(id.document), id.segment_index,
                      id.segment_byte_end, id.chunk_in_segment);
  }
};

// Thread-safe. No page is read or copied under its lock; one that leaves is overwritten with zeros.
class PagePool {
 public:
  using SlotIndex = int32_t;

  // What PinAll found: one entry an id, in order.
  struct Pins {
    std::vector<SlotIndex> slots;       // -1: absent
    std::vector<const uint8_t*> pages;  // null: absent
  };

  // Fetches pages from the slower tier: writes page_bytes to destinations[i], or sets found[i] to
  // false.
  using Load = absl::FunctionRef<absl::Status(absl::Span<const PageId> ids,
                                              absl::Span<uint8_t* const> destinations,
                                              std::vector<bool>* found)>;

  // Where the slots lie, and what the pool counts.
  struct Tier {
    const char* name;
    // Memory aligned to 64 bytes; a pool that gets none has no more slots.
    std::function<absl::StatusOr<Buffer>(int64_t bytes)> allocate;
    // Overwrites a page that leaves.
    std::function<void(uint8_t* page, int64_t bytes)> wipe;
    bool counts_loads;  // false: `load` reads another pool, which counts for itself
  };
  static Tier HostTier();

  // page_bytes > 0.
  PagePool(int64_t page_bytes, int64_t bytes_max, Metrics& metrics, Tier tier = HostTier());
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // Pins all pages, loading those not here (one load for a page that several ask for at once).
  // `mass`: the weight that this read gives to each page, at least 0; empty: none.
  // RESOURCE_EXHAUSTED when pinned pages alone would exceed the limit, or what `load` returned;
  // nothing stays pinned then.
  absl::StatusOr<Pins> PinAll(absl::Span<const PageId> ids, Load load,
                              absl::Span<const float> mass = {});
  // Takes back one pin of each slot that is not -1.
  void Unpin(absl::Span<const SlotIndex> slots);

  // Takes in freshly derived pages, as many as find room; pages[i] is page i of `data`. Only for a
  // pool in host memory.
  void Insert(absl::Span<const PageId> ids, const uint8_t* data);
  // Forgets pages; a pinned one stays where it is for those who hold it.
  void Erase(absl::Span<const PageId> ids);
  // Forgets all pages of these documents.
  void EraseDocuments(const absl::flat_hash_set<DocumentId>& documents);
  // Those of `documents` of which some slot has a page: one that was pinned when they were erased.
  absl::flat_hash_set<DocumentId> Held(const absl::flat_hash_set<DocumentId>& documents) const;

  int64_t used_bytes() const;
  int64_t pinned_bytes() const;
  int64_t limit_bytes() const { return slot_count_max_ * page_bytes_; }

 private:
  enum class State : uint8_t { kFree, kLoading, kReady, kAbsent, kFailed };
  enum class Queue : uint8_t { kSmall, kMain };

  // Of a page, as it was at one moment of the pool's.
  struct Mass {
    float amount = 0;
    int64_t at = 0;  // hits_
  };

  // Of a page that left.
  struct Ghost {
    Mass mass;
    int64_t number = 0;  // of its entry in ghost_order_
  };

  struct Slot {
    PageId id;
    uint8_t* data = nullptr;
    int32_t pins = 0;
    State state = State::kFree;
    bool indexed = false;  // found under its id
    bool queued = false;
    Queue queue = Queue::kSmall;
    Mass mass;
    SlotIndex previous = -1;  // towards the head
    SlotIndex next = -1;      // towards the tail
  };

  // A FIFO of slots linked through previous and next: in at the head, out at the tail.
  struct Fifo {
    SlotIndex head = -1;
    SlotIndex tail = -1;
    int64_t size = 0;
  };

  Fifo& FifoOf(const Slot& slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return slot.queue == Queue::kSmall ? small_ : main_;
  }
  void Enqueue(SlotIndex index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Dequeue(SlotIndex index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A slot for `id`, pinned once, loading, indexed; -1 when all are pinned.
  SlotIndex Take(const PageId& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  SlotIndex FreeSlot() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Frees the slot of a page that leaves; false when there is none.
  bool EvictOne() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Evict(SlotIndex index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The page that leaves the main queue for one of this mass: the lightest of the few oldest; -1
  // when that is heavier, or there is none. Heavier ones that were looked at go to the head.
  SlotIndex MainVictim(float mass) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void MoveToMain(SlotIndex index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What is left of it now.
  float Now(Mass mass) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Add(float amount, Mass* mass) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Pin(SlotIndex index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void UnpinOne(SlotIndex index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes the slot out of the index and, unless pinned, frees it.
  void Unlink(SlotIndex index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Free(SlotIndex index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RememberGhost(const PageId& id, Mass mass) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Tier tier_;
  const int64_t page_bytes_;
  const int64_t slot_count_max_;
  const int64_t small_count_target_;

  mutable absl::Mutex mutex_;
  std::vector<Buffer> slabs_ ABSL_GUARDED_BY(mutex_);
  std::deque<Slot> slots_ ABSL_GUARDED_BY(mutex_);  // never moves
  std::vector<SlotIndex> free_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<PageId, SlotIndex> index_ ABSL_GUARDED_BY(mutex_);
  Fifo small_ ABSL_GUARDED_BY(mutex_);
  Fifo main_ ABSL_GUARDED_BY(mutex_);
  // Oldest first; pages that came back, or left once more, since an entry was made stay in it.
  std::deque<std::pair<PageId, int64_t>> ghost_order_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<PageId, Ghost> ghosts_ ABSL_GUARDED_BY(mutex_);
  int64_t last_ghost_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t hits_ ABSL_GUARDED_BY(mutex_) = 0;  // pages that were here, or not long gone
  int64_t pinned_count_ ABSL_GUARDED_BY(mutex_) = 0;

  Counter& own_reads_;
  Counter* const disk_reads_;     // null: `load` counts
  Counter* const missing_reads_;  // likewise
  Counter& evictions_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_PAGE_POOL_H_
