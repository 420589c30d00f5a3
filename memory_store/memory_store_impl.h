// The inside of MemoryStore, shared by its own files only: memory_store.cc (memories and
// documents), text_log.cc (text), derived_records.cc (segments and their pages), landmark_view.cc
// and pinned_pages.cc (what readers get of them), past_views.cc (views of the past), forks.cc
// (forks and snapshots), deletion_plan.cc and forgetting.cc (deletions), totals.cc (sums) and
// recovery.cc (Open).
//
// Locks, in the order in which they are taken:
// - write_gate_: shared by every write while its I/O runs, exclusive for a deletion, so that no
//   write lands after the deletion of what it belongs to, nor a page in memory. A reader takes it
//   only to tell a deletion under way from damage.
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
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "memory_store/catalog.h"
#include "memory_store/deletion_plan.h"
#include "memory_store/device_landmarks.h"
#include "memory_store/memory_store.h"
#include "memory_store/page_changes.h"
#include "memory_store/page_pool.h"
#include "memory_store/records.h"
#include "memory_store/tail_cache.h"
#include "memory_store/view_cache.h"

namespace mneme {

// NOT_FOUND.
absl::Status NoMemory(MemoryId memory);
absl::Status NoDocument(DocumentId document);

// Of records, and back.
MemoryPolicy PolicyOf(const MemoryRecord& record);
absl::Time ExpireTimeOf(const DocumentRecord& record);
MemoryRecord RecordOf(const MemoryInfo& info);

struct LandmarkView::Impl {
  std::shared_ptr<const LandmarkSnapshot> snapshot;  // shared with the list it was taken from
  std::optional<DeviceLandmarks::Slabs> device;      // with a device tier: its copies
  // Of a view of the past: of memories that it does not show whole. Shared with the cache.
  std::vector<std::shared_ptr<const PastPart>> parts;
};

struct PinnedPages::Impl {
  ~Impl() { pool->Unpin(pins.slots); }

  PagePool* pool = nullptr;  // one of the store's
  bool resident = false;     // the device's
  PagePool::Pins pins;
  std::vector<ChunkAddress> missing;
};

// What every derived segment must be, whatever its document: INVALID_ARGUMENT.
absl::Status CheckSegment(const SegmentDerived& segment, const MemoryStoreOptions& options);
// Ids of pages [0, count) of one version of a segment.
std::vector<PageId> PageIds(DocumentId document, int64_t segment_index, int64_t segment_byte_end,
                            int64_t count, int64_t first = 0);

class TierCollectable;

// A deletion that is not off the disk or out of memory yet.
struct PendingPurge {
  PurgeRecord record;
  uint64_t number = 0;                        // tells it from a later one of the same id
  absl::flat_hash_set<DocumentId> documents;  // that may be in memory
  bool off_disk = false;
  std::string waits_for;  // why the last purge left it, empty: it did not
};

struct MemoryStore::Impl {
  Impl(const MemoryStoreOptions& options_in, ChunkStore& store_in, Metrics& metrics_in,
       Clock& clock_in);
  ~Impl();

  // recovery.cc. Before any other thread knows of this.
  absl::Status Load() ABSL_LOCKS_EXCLUDED(mutex_, ids_mutex_);
  absl::Status LoadPurges() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status LoadDrops() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status LoadSnapshots() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
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
  // Forgets these pages, or those of these documents, in all tiers of memory.
  void ErasePages(absl::Span<const PageId> pages);
  void EraseDocumentPages(const absl::flat_hash_set<DocumentId>& documents);
  // Those of `documents` of which a page that was erased is still pinned.
  absl::flat_hash_set<DocumentId> PagesHeld(const absl::flat_hash_set<DocumentId>& documents) const;
  // Forgets evicted tails whose pages nobody has any more.
  void ForgetEvictedTails() ABSL_LOCKS_EXCLUDED(mutex_);

  // The page of each chunk as its document stands now; nothing for a chunk that is not derived.
  // `memories` gets those of the documents. NOT_FOUND: a document is gone.
  absl::StatusOr<std::vector<std::optional<PageId>>> PagesNow(
      absl::Span<const ChunkAddress> chunks,
      absl::flat_hash_map<DocumentId, MemoryId>* memories) const ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits until no change of what is derived from these documents is under way.
  void AwaitDerivations(absl::Span<const DocumentId> documents) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // past_views.cc.
  // A moment that lies behind from now on: whatever is written later is later. INVALID_ARGUMENT for
  // one to come. Waits for what is being written at that time.
  absl::StatusOr<absl::Time> FixMoment(absl::Time as_of) ABSL_LOCKS_EXCLUDED(mutex_);
  // How much of a document's text was durable at a moment. DATA_LOSS: it is damaged.
  absl::StatusOr<int64_t> CutAt(DocumentId document, absl::Time as_of) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  // The same; marks a document that is damaged.
  absl::StatusOr<int64_t> FindCut(DocumentId document, absl::Time as_of)
      ABSL_LOCKS_EXCLUDED(write_gate_, mutex_);
  // A document as a memory has it; CutInfo then cuts it down to the memory's moment. Where that is
  // cannot be told of damaged text: the document is marked, and stays as it is.
  DocumentInfo SharedInfo(const DocumentEntry& document, const MemoryEntry& memory) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<DocumentInfo> CutInfo(DocumentInfo info, absl::Time until)
      ABSL_LOCKS_EXCLUDED(write_gate_, mutex_);
  // Documents as for ListDocuments, before CutInfo, each with the memory's moment of it. NOT_FOUND.
  absl::StatusOr<std::vector<std::pair<DocumentInfo, absl::Time>>> DocumentsAfter(
      MemoryId memory, DocumentId after, size_t limit) const ABSL_LOCKS_EXCLUDED(mutex_);

  // A moment for what is written now, later than every moment that was fixed. It is under way until
  // EndWrite.
  absl::Time BeginWrite() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndWrite(absl::Time moment) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // How much of a document that has grown since a view shows: nothing of one that is gone, or whose
  // text turns out to be damaged (it is marked). Errors of the store.
  absl::StatusOr<int64_t> ShownBytes(DocumentId document, absl::Time until)
      ABSL_LOCKS_EXCLUDED(write_gate_, mutex_);
  // One list of landmarks, with its copies on the device. `parts`: see LandmarkView::Impl.
  std::shared_ptr<const LandmarkView::Impl> ShowTogether(
      const std::vector<std::shared_ptr<const LandmarkSnapshot>>& snapshots,
      std::vector<std::shared_ptr<const PastPart>> parts) const;

  // Gives a tail its handle and takes it in; `gone` gets the handles of those that went for it,
  // also when there is no room: RESOURCE_EXHAUSTED.
  absl::Status AddTail(std::shared_ptr<Tail> tail, absl::flat_hash_set<DocumentId>* gone)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // FixMoment, for a moment of that memory: INVALID_ARGUMENT also before it began, NOT_FOUND.
  absl::StatusOr<absl::Time> FixMomentOf(const ReadSource& source) ABSL_LOCKS_EXCLUDED(mutex_);

  // deletion_plan.cc. With write_gate_ held by the caller, exclusively. NOT_FOUND; errors of the
  // store.
  struct Dropping;
  absl::StatusOr<DeletionPlan> PlanDocument(MemoryId memory, DocumentId document, bool everywhere)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_gate_) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<DeletionPlan> PlanMemory(MemoryId memory, bool everywhere)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_gate_) ABSL_LOCKS_EXCLUDED(mutex_);
  // What becomes of documents that the memories `by` drop; notes who drops and who holds them.
  std::vector<Dropping> Droppings(absl::Span<const DocumentId> documents,
                                  const absl::flat_hash_set<MemoryId>& by, DeletionPlan* plan) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Notes what goes of them.
  absl::Status FinishPlan(absl::Span<const Dropping> droppings, DeletionPlan* plan)
      ABSL_LOCKS_EXCLUDED(mutex_);
  WriteBatch BatchOf(const DeletionPlan& plan) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // forgetting.cc. Carries it out.
  absl::StatusOr<Deletion> Delete(DeletionPlan plan) ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_gate_)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Takes ranges off the disk, mending what is damaged; `waiting` gets the deletions that lie in
  // what cannot be mended, and why. Other errors as ChunkStore::Purge.
  absl::Status PurgeFiles(const std::map<PurgeId, std::vector<KeyRange>>& ranges,
                          std::atomic<bool>& cancel, std::map<PurgeId, std::string>* waiting)
      ABSL_LOCKS_EXCLUDED(write_gate_, mutex_);
  // `pages` gets those of the segments that go.
  void CutOffEnd(const DeletionPlan::CutOff& cut, std::vector<PageId>* pages)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Deletion DeletionOf(PurgeId id, const PurgeRecord& record) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  // From now on this is to be purged. `documents`: that may be in memory.
  void AddPurge(PurgeId id, PurgeRecord record, absl::flat_hash_set<DocumentId> documents)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Counts a record that failed its checks, and logs it.
  Counter& CorruptRecords(RecordKind kind) const;
  void ReportDamage(RecordKind kind, const absl::Status& status) const;

  // lost_text.cc. GiveUp of a ChunkStore. DATA_LOSS: they are of the catalog.
  absl::Status GiveUpRecords(const LostRecords& lost) ABSL_LOCKS_EXCLUDED(write_gate_, mutex_);
  // Deletes again what deletions that wait for their purge deleted among these keys, of text or of
  // what is derived. Errors of the store.
  absl::Status DeleteAgain(const KeyRange& lost, WriteBatch* batch) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_gate_) ABSL_LOCKS_EXCLUDED(mutex_);
  // Of a memory that may stay without a name for its forks, and of a document that others may hold.
  absl::Status DeleteMemoryAgain(MemoryId memory, Table table, WriteBatch* batch) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status DeleteDocumentAgain(DocumentKey key, Table table, WriteBatch* batch) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  // What comes after the end of one that is there, and that may have lost what came there.
  void DeleteEndAgain(DocumentKey key, Table table, WriteBatch* batch) const
      ABSL_LOCKS_EXCLUDED(mutex_);

  // The text of a document cannot be read: marks it. When it was not marked, counts it and reports
  // `damage` in full. Returns DATA_LOSS that names the document and no file. It was none, and
  // nothing is marked, when the document is gone (NOT_FOUND), or has lost its end meanwhile and has
  // not the `bytes` any more that the reader went by (OUT_OF_RANGE).
  absl::Status MarkTextDamaged(DocumentId document, int64_t bytes, const absl::Status& damage)
      ABSL_LOCKS_EXCLUDED(write_gate_, mutex_);

  // Identities never given before, made sure of on disk first.
  absl::StatusOr<MemoryId> NewMemoryId() ABSL_LOCKS_EXCLUDED(ids_mutex_);
  MemoryId NextMemoryId() ABSL_LOCKS_EXCLUDED(ids_mutex_);  // no memory has it or a greater one
  absl::StatusOr<DocumentId> NewDocumentId() ABSL_LOCKS_EXCLUDED(ids_mutex_);
  absl::Status ReserveIds() ABSL_EXCLUSIVE_LOCKS_REQUIRED(ids_mutex_);

  // The parts of PutSegments. What it changes, by document: those that are gone, or outdated, are
  // left out. Errors as PutSegments.
  struct Change;
  using Changes = absl::flat_hash_map<DocumentId, Change>;
  absl::StatusOr<Changes> ChangesOf(absl::Span<const SegmentDerived> segments) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // One batch, so that a segment and its pages change together.
  WriteBatch BatchOf(absl::Span<const SegmentDerived> segments, const Changes& changes) const;
  // Makes what has been written visible, and its pages.
  void TakeIn(absl::Span<const SegmentDerived> segments, const Changes& changes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TakeInPages(absl::Span<const SegmentDerived> segments, const Changes& changes);

  // Of documents whose end was taken off when their memory dropped them: those whose segments here
  // were derived from more text than is left.
  absl::flat_hash_set<DocumentId> Outdated(absl::Span<const SegmentDerived> segments) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // PutPages of a tail.
  absl::Status PutTailPages(DocumentId handle, int64_t segment_index,
                            absl::Span<const uint8_t> pages, int64_t first_chunk)
      ABSL_LOCKS_EXCLUDED(write_gate_, mutex_);
  // Makes a document's segments end before `segment_index`.
  void TruncateSegments(DocumentEntry& document, int64_t segment_index)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Adds the next segment. `landmarks`: [chunk_count, landmark_bytes].
  void AppendSegment(DocumentEntry& document, SegmentEntry entry,
                     absl::Span<const int64_t> chunk_byte_begin, const uint8_t* landmarks)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const MemoryStoreOptions options;
  PageChanges page_changes;
  ChunkStore& store;
  Metrics& metrics;
  Clock& clock;
  PagePool pool;  // host
  // The device tier; null without one.
  std::unique_ptr<PagePool> device_pool;
  std::unique_ptr<DeviceLandmarks> device_landmarks;
  std::shared_ptr<TierCollectable> collectable;  // with Metrics
  // Once a document, until its text can be read again.
  Counter& documents_damaged;

  absl::Mutex write_gate_;
  absl::Mutex ids_mutex_ ABSL_ACQUIRED_AFTER(write_gate_);
  mutable absl::Mutex mutex_ ABSL_ACQUIRED_AFTER(write_gate_, ids_mutex_);

  Catalog catalog ABSL_GUARDED_BY(mutex_);
  // Names of memories, and of documents, whose creation is under way.
  absl::flat_hash_set<std::pair<std::string, std::string>> creating_memories
      ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<std::pair<MemoryId, std::string>> creating_documents ABSL_GUARDED_BY(mutex_);

  absl::Time last_write ABSL_GUARDED_BY(mutex_) = absl::UnixEpoch();  // moments given to writes
  absl::Time last_fixed ABSL_GUARDED_BY(mutex_) = absl::UnixEpoch();  // see FixMoment
  absl::btree_multiset<absl::Time> writes_under_way ABSL_GUARDED_BY(mutex_);
  mutable TailCache tails ABSL_GUARDED_BY(mutex_);
  Gauge& tail_bytes_gauge;
  Counter& tails_counter;
  mutable ViewCache views;
  Counter& views_made;
  Counter& views_reused;
  // Where documents ended at a moment: never changes, and costs reads to find out.
  mutable absl::flat_hash_map<std::pair<DocumentId, absl::Time>, int64_t> cuts
      ABSL_GUARDED_BY(cuts_mutex_);
  mutable absl::Mutex cuts_mutex_ ABSL_ACQUIRED_AFTER(mutex_);

  std::map<PurgeId, PendingPurge> purges ABSL_GUARDED_BY(mutex_);
  uint64_t last_purge_number ABSL_GUARDED_BY(mutex_) = 0;

  CounterRecord next_ids ABSL_GUARDED_BY(ids_mutex_);
  CounterRecord reserved_ids ABSL_GUARDED_BY(ids_mutex_);  // on disk: none from here on was given
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_MEMORY_STORE_IMPL_H_
