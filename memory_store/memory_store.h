// MemoryStore: memories, documents, their text, and what was derived from it, in tiers. Knows bytes
// and records, no network.
//
// Text is the truth: durable before AppendText returns. Segment records (with landmarks) and pages
// are derived: written behind, checked by crc and derivation fingerprint, and re-derived by the
// engine when absent or damaged. Formats: docs/storage_format.md.

#ifndef MNEME_MEMORY_STORE_MEMORY_STORE_H_
#define MNEME_MEMORY_STORE_MEMORY_STORE_H_

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "kernels/backend.h"
#include "memory_store/backup_directory.h"
#include "memory_store/chunk_store.h"
#include "memory_store/ids.h"
#include "memory_store/page_changes.h"

namespace mneme {

// What of a memory is on the disk besides text and landmarks.
enum class Retention : uint8_t {
  kKeep = 0,  // its pages
  kText = 1,  // nothing: a page that has left the host tier is derived again
};

struct MemoryPolicy {
  Retention retention = Retention::kKeep;
  // From the beginning of a document to its end, unless the document says when; infinite: none.
  absl::Duration ttl = absl::InfiniteDuration();
  // Text that it may hold; 0: no limit of its own. Kept here, held to by the engine.
  int64_t quota_bytes = 0;

  friend bool operator==(const MemoryPolicy&, const MemoryPolicy&) = default;
};

// What to change of a memory.
struct MemoryUpdate {
  std::optional<std::string> display_name;
  std::optional<Retention> retention;
  std::optional<absl::Duration> ttl;   // infinite: none
  std::optional<int64_t> quota_bytes;  // 0: none
};

// What a memory is a fork of.
struct MemoryBase {
  MemoryId memory{};
  std::string memory_id;  // empty: it has been deleted
  absl::Time as_of;       // the moment of it that the fork holds
};

struct MemoryInfo {
  MemoryId uid{};
  std::string tenant;
  std::string id;
  std::string display_name;
  absl::Time create_time;
  MemoryPolicy policy;
  std::optional<MemoryBase> base;
};

// A name for a moment of a memory.
struct SnapshotInfo {
  std::string id;
  absl::Time as_of;
  absl::Time create_time;
};

// A memory to read, as it is (infinite future) or was at an earlier moment.
struct ReadSource {
  MemoryId memory{};
  absl::Time as_of = absl::InfiniteFuture();

  friend bool operator==(const ReadSource&, const ReadSource&) = default;
};

// As the memory that was asked sees it: a fork has the documents of its base up to its moment.
struct DocumentInfo {
  DocumentId uid{};
  MemoryId memory{};
  std::string id;
  absl::Time create_time;
  // From then on nobody finds it; infinite: never.
  absl::Time expire_time = absl::InfiniteFuture();
  bool sealed = false;
  // Of a fork's base: nothing is appended to it through the fork.
  bool shared = false;
  bool damaged = false;  // its text is corrupt on disk
  int64_t durable_bytes = 0;
  // Of what is derived and can be found:
  int64_t visible_bytes = 0;
  int64_t token_count = 0;
  int64_t chunk_count = 0;
};

// What is derived from one segment of a document. Replaces the segment of the same index;
// `PutSegments` of the open (last) segment again, with more text, is how a document grows.
struct SegmentDerived {
  DocumentId document{};
  int64_t segment_index = 0;
  uint64_t derivation_fingerprint = 0;
  // Where encoding begins anew to get this segment's tokens: encode from `encode_from_byte`, drop
  // `skip_tokens`.
  int64_t encode_from_byte = 0;
  int32_t skip_tokens = 0;
  int32_t token_count = 0;
  // Text range [byte_begin, byte_end) that its tokens cover.
  int64_t byte_begin = 0;
  int64_t byte_end = 0;
  // First byte of each chunk, [chunk_count]; adjusted to UTF-8 boundaries by the engine.
  std::vector<int64_t> chunk_byte_begin;
  std::vector<uint8_t> landmarks;  // [chunk_count, landmark_bytes]
  std::vector<uint8_t> pages;      // [chunk_count, page_bytes]; empty: not kept
};

// Text to append to one document at `byte_offset` == its durable_bytes. `text` may be empty when
// `seal` is set. At most one per document in a call of AppendText.
struct TextAppend {
  DocumentId document{};
  int64_t byte_offset = 0;
  absl::string_view text;
  bool seal = false;
};

// Where a chunk's text lies.
struct ChunkText {
  ChunkAddress address;   // of its page
  DocumentId document{};  // not a tail
  // Where the document ends in the view; the greatest number: where it ends now.
  int64_t document_end = std::numeric_limits<int64_t>::max();
  int64_t byte_begin = 0;
  int64_t byte_end = 0;
};

// An immutable list of the landmarks of several memories at one moment, oldest document first: what
// one query sees. Documents deleted or grown later do not change it. Cheap to copy (shared,
// immutable slabs). Thread-safe.
class LandmarkView {
 public:
  LandmarkView();
  ~LandmarkView();
  LandmarkView(const LandmarkView&);
  LandmarkView& operator=(const LandmarkView&);

  int64_t chunk_count() const;
  // In the device's memory as far as there is room, without a device tier in the host's.
  absl::Span<const LandmarkSlab> slabs() const;
  // All slabs lie in the device's memory.
  bool slabs_resident() const;
  // Chunk at an index of the view (0 .. chunk_count-1).
  ChunkText Locate(int64_t index) const;

 private:
  friend class MemoryStore;
  struct Impl;
  std::shared_ptr<const Impl> impl_;  // shared by the copies of this view
};

// A document as it was up to a byte: the segments that end before it and can no longer change are
// the document's own, the rest is its tail.
struct DocumentCut {
  DocumentId document{};
  int64_t cut_bytes = 0;
};

// A tail that is kept, for as long as this handle or a view that shows it lives.
struct Tail;
using TailHandle = std::shared_ptr<const Tail>;

// Memories as they were.
struct PastView {
  // Nothing while something is wanting.
  std::optional<LandmarkView> view;
  // Tails to be derived and put (PutTail), and the view asked for again with their handles held.
  std::vector<DocumentCut> wanting;
  // Text that is durable and not visible yet: until then the view would lack it.
  std::vector<DocumentCut> lagging;
  // Tails that are there, of a view that wants others: held until it is asked for again.
  std::vector<TailHandle> tails;
};

// Pages held in memory; they stay where they are until this handle goes. Must not outlive the
// store. Move-only.
class PinnedPages {
 public:
  PinnedPages();
  ~PinnedPages();
  PinnedPages(PinnedPages&&) noexcept;
  PinnedPages& operator=(PinnedPages&&) noexcept;

  // One pointer per address asked for, in order; null where the page is in no tier (see `missing`).
  // Memory of the device where the store has a device tier.
  absl::Span<const uint8_t* const> pages() const;
  // The pages are memory of the device.
  bool resident() const;
  // Addresses whose page is absent or damaged and must be re-derived.
  absl::Span<const ChunkAddress> missing() const;

 private:
  friend class MemoryStore;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// What a deletion removed, and when.
struct DeletionReceipt {
  int64_t documents = 0;
  int64_t text_bytes = 0;
  int64_t tokens = 0;
  int64_t chunks = 0;
  int64_t pages = 0;
  absl::Time delete_time;  // from then on nobody finds it
  // When it left the last file; infinite future: not yet, or something of it is held.
  absl::Time purge_time = absl::InfiniteFuture();
  // What other memories hold of it, and their ids, at most kHeldByMax of them. It is not counted
  // above, and goes when the last of them drops it.
  static constexpr size_t kHeldByMax = 100;
  int64_t held_documents = 0;
  int64_t held_text_bytes = 0;
  std::vector<std::string> held_by;
};

struct Deletion {
  PurgeId id;
  std::string tenant;
  DeletionReceipt receipt;
  // Something has to leave the disk or memory yet: see Purge.
  bool pending = true;
  // Of one that is pending: what kept it on the disk at the last try; empty: nothing did.
  std::string waits_for;
  // Of the call itself: documents that are gone, and those that take no more text, or have lost
  // their end, but that others hold.
  std::vector<DocumentId> deleted_documents;
  std::vector<DocumentId> dropped_documents;
};

struct MemoryStoreOptions {
  int64_t page_bytes = 0;      // of the model's PageLayout
  int64_t landmark_bytes = 0;  // of one row
  int64_t chunk_tokens = 64;   // of a chunk, but for the last of a segment, which may have fewer
  uint64_t derivation_fingerprint = 0;
  // Host tier: pages in memory, at most this many bytes, pinned ones included.
  int64_t host_page_bytes_max = int64_t{1} << 30;
  int64_t tenants_max = 1024;
  int64_t snapshots_per_memory_max = 1000;
  // Forks of forks of forks, at most.
  int fork_depth_max = 32;
  // Landmarks of tails, those that views show included.
  int64_t tail_bytes_max = int64_t{256} << 20;
  // What views of forks and of the past show of one memory, kept for the next: as many, at most.
  int64_t past_views_max = 64;
  // Device tier: a backend whose memory is not the host's, or null. Readers then get pages and
  // landmarks there; landmarks beyond the limit stay in host memory. Must outlive the store and its
  // views.
  Backend* device = nullptr;
  int64_t device_page_bytes_max = int64_t{4} << 30;
  int64_t device_landmark_bytes_max = int64_t{32} << 30;
  // What tiers() tells as the limit of landmarks in host memory, and of the disk (0: what is free);
  // the engine holds ingest to them.
  int64_t host_landmark_bytes_max = 0;
  int64_t disk_bytes_max = 0;
};

struct TierUse {
  std::string name;
  int64_t used_bytes = 0;
  int64_t limit_bytes = 0;
};

// Thread-safe.
class MemoryStore {
 public:
  // Loads the catalog and all landmarks. Records with another derivation fingerprint or a bad
  // checksum are left out, so the document's visible_bytes ends before them and the engine
  // re-derives. `store`, `metrics`, `clock` must outlive this.
  static absl::StatusOr<std::unique_ptr<MemoryStore>> Open(const MemoryStoreOptions& options,
                                                           ChunkStore& store, Metrics& metrics,
                                                           Clock& clock);
  ~MemoryStore();

  // Catalog. ALREADY_EXISTS / NOT_FOUND as the names say; changes are synced before they return.
  absl::StatusOr<MemoryInfo> CreateMemory(const std::string& tenant, const std::string& id,
                                          const std::string& display_name,
                                          const MemoryPolicy& policy = {});
  // A memory that holds what another one does, as it was at `as_of` (infinite future: as it is),
  // and then goes its own way. One record is written, whatever the size. Its policy is that of the
  // source; the documents that it shares expire as they do there. Durable text alone counts, also
  // where it is not visible yet. FAILED_PRECONDITION: too many forks of forks; INVALID_ARGUMENT:
  // a moment that is to come, or before the source began; else as CreateMemory.
  absl::StatusOr<MemoryInfo> ForkMemory(const ReadSource& source, const std::string& id,
                                        const std::string& display_name);
  // Names a moment of a memory, now with infinite future. Nothing is held by a snapshot: what is
  // deleted is gone from it too. ALREADY_EXISTS, RESOURCE_EXHAUSTED (too many), NOT_FOUND;
  // INVALID_ARGUMENT as ForkMemory.
  absl::StatusOr<SnapshotInfo> CreateSnapshot(const ReadSource& source, const std::string& id);
  absl::StatusOr<SnapshotInfo> GetSnapshot(MemoryId memory, const std::string& id) const;
  // With id > `after_id`, by id, at most `limit`.
  std::vector<SnapshotInfo> ListSnapshots(MemoryId memory, const std::string& after_id,
                                          int limit) const;
  absl::Status DeleteSnapshot(MemoryId memory, const std::string& id);
  // A memory that keeps its pages no more has none when this returns, and they wait to be purged as
  // after a deletion. Pages that are to be kept again come as they are put.
  absl::StatusOr<MemoryInfo> UpdateMemory(MemoryId memory, const MemoryUpdate& update);
  absl::StatusOr<MemoryInfo> GetMemory(const std::string& tenant, const std::string& id) const;
  // Memories of a tenant with id > `after_id`, by id, at most `limit`.
  std::vector<MemoryInfo> ListMemories(const std::string& tenant, const std::string& after_id,
                                       int limit) const;
  // Deletions are durable when they return; Purge takes what they deleted off the disk. What other
  // memories hold stays for them (see DeletionReceipt): the bases of a fork, and its forks, unless
  // `everywhere`, which drops it from all forks of it as well.
  absl::StatusOr<Deletion> DeleteMemory(MemoryId memory, bool everywhere = false);

  // `expire_time` goes before what the memory's ttl says. Documents that have expired are not found
  // by any method, but their names stay taken until they are deleted.
  absl::StatusOr<DocumentInfo> CreateDocument(MemoryId memory, const std::string& id,
                                              absl::Time expire_time = absl::InfiniteFuture());
  absl::StatusOr<DocumentInfo> GetDocument(MemoryId memory, const std::string& id) const;
  // Whatever memory has it; of a tail, as it was.
  absl::StatusOr<DocumentInfo> GetDocument(DocumentId document) const;
  // As a memory has it, or had it at a moment that has passed; NOT_FOUND when it does or did not.
  absl::StatusOr<DocumentInfo> GetDocument(const ReadSource& source, DocumentId document) const;
  // Documents of a memory, those of its bases included, with uid > `after`, oldest first: `limit`,
  // or all that follow where they are fewer. NOT_FOUND when the memory is gone; errors of the
  // store.
  absl::StatusOr<std::vector<DocumentInfo>> ListDocuments(MemoryId memory, DocumentId after,
                                                          int limit) const;
  // Each once, as the memory has it that it was written into.
  std::vector<DocumentInfo> AllDocuments() const;
  // Documents that have expired and are to be deleted, at most `limit`.
  std::vector<DocumentInfo> ExpiredDocuments(int limit) const;
  // The one whose name is taken in a memory although it has expired.
  std::optional<DocumentInfo> ExpiredDocument(MemoryId memory, const std::string& id) const;
  // A memory drops a document. What nobody holds any more of it is deleted: the whole of it, or
  // what came after the moments of the forks that do. `everywhere`: as DeleteMemory.
  absl::StatusOr<Deletion> DeleteDocument(MemoryId memory, DocumentId document,
                                          bool everywhere = false);
  // By the memory that it was written into.
  absl::StatusOr<Deletion> DeleteDocument(DocumentId document, bool everywhere = false);
  // Deletions, also of earlier starts, that are not off the disk or out of memory yet.
  std::vector<Deletion> PendingDeletions() const;
  // Takes all of them out of every file, and returns those of which no byte is left there, in the
  // host tier's pages or among landmarks; what running questions still read stays pending. Damaged
  // files that are in the way are mended; those deletions alone stay pending that lie in one that
  // cannot be (Deletion::waits_for). One call at a time. Long; see ChunkStore::Purge for `cancel`
  // and other errors, after which all stay pending.
  absl::StatusOr<std::vector<Deletion>> Purge(std::atomic<bool>& cancel);

  // Appends to any number of documents in one synced write: all or nothing. FAILED_PRECONDITION
  // when an offset is not the document's durable_bytes or it is sealed; NOT_FOUND when it is gone.
  absl::Status AppendText(absl::Span<const TextAppend> appends);
  // Text [begin, end) of a document, end <= durable_bytes. DATA_LOSS when a record is damaged (and
  // the document is marked).
  absl::StatusOr<std::string> ReadText(DocumentId document, int64_t byte_begin,
                                       int64_t byte_end) const;

  // Makes derived segments findable, at once, and writes them behind. Segments of documents deleted
  // meanwhile, or cut off with the end of a document that its memory has dropped, are left out.
  // Segments of one document come in ascending order; what was stored of it
  // with a greater index than the last of this call goes away in the same step (text that follows
  // may move the end of an open segment: the ones after it are put again with it). All of a call or
  // nothing: after an error the same call may be made again. FAILED_PRECONDITION for a segment that
  // would leave a hole; INVALID_ARGUMENT for sizes that do not fit, another fingerprint or text
  // that is not durable.
  absl::Status PutSegments(absl::Span<const SegmentDerived> segments);
  // Pages of one segment that were missing, derived again: one or more, from chunk `first_chunk` of
  // the segment on. Not a change of what is visible. `segment_byte_end`: byte_end of the segment
  // that they were derived from (-1: not said); FAILED_PRECONDITION when the segment has been
  // replaced since. NOT_FOUND when it is gone.
  absl::Status PutPages(DocumentId document, int64_t segment_index, absl::Span<const uint8_t> pages,
                        int64_t segment_byte_end = -1, int64_t first_chunk = 0);
  // Pages of the document are kept on disk (see Retention). False when it is gone.
  bool KeepsPages(DocumentId document) const;
  // Puts a visible segment's records (and pages, unless empty) in place again: it has been derived
  // from the same text once more. Changes nothing that is visible. NOT_FOUND when it is gone;
  // FAILED_PRECONDITION when another version is visible; INVALID_ARGUMENT as PutSegments.
  absl::Status RestoreSegment(const SegmentDerived& segment);
  // A segment's record without landmarks and pages: what the engine needs to derive it again, or to
  // go on from it. segment_index -1: the last one. NOT_FOUND when not derived.
  absl::StatusOr<SegmentDerived> GetSegment(DocumentId document, int64_t segment_index) const;

  // Landmarks of several memories that are no forks, of what has not expired, ordered by
  // DocumentId. NOT_FOUND when one is gone; FAILED_PRECONDITION for a fork.
  absl::StatusOr<LandmarkView> View(absl::Span<const MemoryId> memories) const;
  // The same of memories as they are or were, forks among them. A document that several of them
  // have counts once, with all the text that one of them has of it; the order of `sources` does not
  // matter. INVALID_ARGUMENT for a moment to come; errors of the store.
  absl::StatusOr<PastView> ViewPast(absl::Span<const ReadSource> sources) const;
  // Takes in a tail: of its document's segments the first `shared_segments` go unchanged before it,
  // `segments` follow (of that document and as they are numbered there, with landmarks; their pages
  // are taken in as far as there is room). NOT_FOUND when the document is gone; RESOURCE_EXHAUSTED
  // when tails in use alone would exceed their limit; FAILED_PRECONDITION when the segments do not
  // follow those that the document has.
  absl::StatusOr<TailHandle> PutTail(const DocumentCut& cut, int64_t shared_segments,
                                     absl::Span<const SegmentDerived> segments);
  // Brings pages into the host tier, or the device tier where there is one, and pins them there.
  // `mass`: the weight that the reader gives to each (HSA weights, summed over its rows), which
  // decides what stays in memory; empty: none. NOT_FOUND when a document is gone;
  // RESOURCE_EXHAUSTED when the pinned pages alone would exceed the tier's limit.
  absl::StatusOr<PinnedPages> Pin(absl::Span<const ChunkAddress> chunks,
                                  absl::Span<const float> mass = {});

  // Adds a backup of everything written so far to a directory, while all goes on; see
  // BackupDirectory::Create. `version`: of this program.
  absl::StatusOr<BackupInfo> Backup(BackupDirectory& directory, const std::string& version,
                                    const BackupStep& step);

  // Everything written behind reaches the disk.
  absl::Status Flush();
  std::vector<TierUse> tiers() const;
  // Use of the disk, walking its files; bytes free there (-1: not known); bytes of all landmarks.
  int64_t disk_used_bytes() const;
  int64_t disk_free_bytes() const;
  int64_t landmark_bytes() const;

  struct Totals {
    int64_t memories = 0, documents = 0, durable_bytes = 0, visible_bytes = 0, tokens = 0,
            chunks = 0;
    int64_t damaged_documents = 0;  // of `documents`
    // Text that became durable since the store was opened, whatever became of it: never less.
    int64_t appended_bytes = 0;
  };
  // Each document counts once.
  Totals totals() const;
  // Documents whose pages changed or went, since the store was opened.
  const PageChanges& page_changes() const;
  // Of landmarks of the ends of documents as they were, in memory (MemoryStoreOptions).
  int64_t tail_bytes() const;
  // What one memory has, a fork with what it shares; NOT_FOUND when gone; errors of the store.
  // `memories` is 1.
  absl::StatusOr<Totals> totals(MemoryId memory) const;
  // The same without what it shares with its bases.
  absl::StatusOr<Totals> own_totals(MemoryId memory) const;
  // Of all memories of a tenant, each document once: also those that only forks of a memory hold
  // which has dropped them, or is gone.
  Totals tenant_totals(const std::string& tenant) const;
  // MemoryPolicy::quota_bytes; NOT_FOUND when gone.
  absl::StatusOr<int64_t> quota_bytes(MemoryId memory) const;

 private:
  friend class StoreChecker;
  struct Impl;
  explicit MemoryStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_MEMORY_STORE_H_
