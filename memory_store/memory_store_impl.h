// The inside of MemoryStore, shared by its own files only: memory_store.cc (catalog and text),
// forgetting.cc (deletions), derived_records.cc (segments, views and pages) and recovery.cc (Open).
//
// Locks, in the order in which they are taken:
// - write_gate_: shared by every write while its I/O runs, exclusive for a deletion, so that no
// write
//   lands after the deletion of what it belongs to. A reader takes it only to tell a deletion under
//   way from damage.
// - ids_mutex_: creations only.
// - mutex_: the catalog and the landmarks. Held for memory accesses alone, never during I/O.

#ifndef MNEME_MEMORY_STORE_MEMORY_STORE_IMPL_H_
#define MNEME_MEMORY_STORE_MEMORY_STORE_IMPL_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "memory_store/catalog.h"
#include "memory_store/device_landmarks.h"
#include "memory_store/memory_store.h"
#include "memory_store/page_pool.h"
#include "memory_store/records.h"

namespace mneme {

// Of records, and back.
MemoryPolicy PolicyOf(const MemoryRecord& record);
absl::Time ExpireTimeOf(const DocumentRecord& record);
MemoryRecord RecordOf(const MemoryInfo& info);

struct LandmarkView::Impl {
  std::shared_ptr<const LandmarkSnapshot> snapshot;  // shared with the list it was taken from
  std::optional<DeviceLandmarks::Slabs> device;      // with a device tier: its copies
};

struct PinnedPages::Impl {
  ~Impl() { pool->Unpin(pins.slots); }

  PagePool* pool = nullptr;  // one of the store's
  bool resident = false;     // the device's
  PagePool::Pins pins;
  std::vector<ChunkAddress> missing;
};

// Tier use and totals, read when Prometheus asks. Outlives the store inside Metrics; says nothing
// then. Thread-safe.
class TierCollectable;

// A deletion that is not off the disk or out of memory yet.
struct PendingPurge {
  PurgeRecord record;
  uint64_t number = 0;                        // tells it from a later one of the same id
  absl::flat_hash_set<DocumentId> documents;  // that may be in memory
  bool off_disk = false;
};

struct MemoryStore::Impl {
  Impl(const MemoryStoreOptions& options_in, ChunkStore& store_in, Metrics& metrics_in,
       Clock& clock_in);
  ~Impl();

  // recovery.cc. Before any other thread knows of this.
  absl::Status Load() ABSL_LOCKS_EXCLUDED(mutex_, ids_mutex_);
  absl::Status LoadPurges() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status LoadCatalog() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_, ids_mutex_);
  // `documents`: all of them, in the order of their keys.
  absl::Status LoadTextEnds(absl::Span<DocumentEntry* const> documents)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status LoadSegments(absl::Span<DocumentEntry* const> documents)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Fetches pages from the disk for the pool; see PagePool::Load. `memories`: of the documents
  // asked for.
  absl::Status LoadPages(const absl::flat_hash_map<DocumentId, MemoryId>& memories,
                         absl::Span<const PageId> ids, absl::Span<uint8_t* const> destinations,
                         std::vector<bool>* found) const;

  // Fetches pages from the host tier for the device's; `load` fills the host tier.
  absl::Status LoadDevicePages(absl::Span<const PageId> ids,
                               absl::Span<uint8_t* const> destinations, PagePool::Load load,
                               std::vector<bool>* found);
  // Forgets pages of these documents in all tiers of memory.
  void ErasePages(const absl::flat_hash_set<DocumentId>& documents);

  // Waits until no change of what is derived from this document is under way.
  void AwaitDerivation(DocumentId document) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The same of several documents.
  void AwaitDerivations(absl::Span<const ChunkAddress> chunks) const ABSL_LOCKS_EXCLUDED(mutex_);

  // From now on this is to be purged. `documents`: that may be in memory.
  void AddPurge(PurgeId id, PurgeRecord record, absl::flat_hash_set<DocumentId> documents)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Counts a record that failed its checks, and logs it.
  Counter& CorruptRecords(RecordKind kind) const;
  void ReportDamage(RecordKind kind, const absl::Status& status) const;

  // The text of a document cannot be read: marks it, reports, and returns `damage`. NOT_FOUND when
  // the document is gone: then it was none.
  absl::Status MarkTextDamaged(DocumentId document, const absl::Status& damage)
      ABSL_LOCKS_EXCLUDED(write_gate_, mutex_);

  // Identities never given before, made sure of on disk first.
  absl::StatusOr<MemoryId> NewMemoryId() ABSL_LOCKS_EXCLUDED(ids_mutex_);
  absl::StatusOr<DocumentId> NewDocumentId() ABSL_LOCKS_EXCLUDED(ids_mutex_);
  absl::Status ReserveIds() ABSL_EXCLUSIVE_LOCKS_REQUIRED(ids_mutex_);

  // Makes a document's segments end before `segment_index`.
  void TruncateSegments(DocumentEntry& document, int64_t segment_index)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Adds the next segment. `landmarks`: [chunk_count, landmark_bytes].
  void AppendSegment(DocumentEntry& document, SegmentEntry entry,
                     absl::Span<const int64_t> chunk_byte_begin, const uint8_t* landmarks)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const MemoryStoreOptions options;
  ChunkStore& store;
  Metrics& metrics;
  Clock& clock;
  PagePool pool;  // host
  // The device tier; null without one.
  std::unique_ptr<PagePool> device_pool;
  std::unique_ptr<DeviceLandmarks> device_landmarks;
  std::shared_ptr<TierCollectable> collectable;  // with Metrics

  absl::Mutex write_gate_;
  absl::Mutex ids_mutex_ ABSL_ACQUIRED_AFTER(write_gate_);
  mutable absl::Mutex mutex_ ABSL_ACQUIRED_AFTER(write_gate_, ids_mutex_);

  Catalog catalog ABSL_GUARDED_BY(mutex_);
  // Names of memories, and of documents, whose creation is under way.
  absl::flat_hash_set<std::pair<std::string, std::string>> creating_memories
      ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<std::pair<MemoryId, std::string>> creating_documents ABSL_GUARDED_BY(mutex_);

  std::map<PurgeId, PendingPurge> purges ABSL_GUARDED_BY(mutex_);
  uint64_t last_purge_number ABSL_GUARDED_BY(mutex_) = 0;

  CounterRecord next_ids ABSL_GUARDED_BY(ids_mutex_);
  CounterRecord reserved_ids ABSL_GUARDED_BY(ids_mutex_);  // on disk: none from here on was given
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_MEMORY_STORE_IMPL_H_
