// What the store knows of memories and documents while it runs: all of it in host memory, loaded at
// Open. Plain data, guarded by the memory store's lock.

#ifndef MNEME_MEMORY_STORE_CATALOG_H_
#define MNEME_MEMORY_STORE_CATALOG_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/string_view.h"
#include "memory_store/change_log.h"
#include "memory_store/keys.h"
#include "memory_store/landmark_list.h"
#include "memory_store/memory_store.h"

namespace mneme {

// A derived segment, without landmarks and pages.
struct SegmentEntry {
  int64_t encode_from_byte = 0;
  int64_t byte_begin = 0;
  int64_t byte_end = 0;
  int64_t first_chunk = 0;  // of the document
  int32_t skip_tokens = 0;
  int32_t token_count = 0;
  int64_t chunk_count = 0;
};

// Without its first chunk.
SegmentEntry EntryOf(const SegmentDerived& segment);

struct MemoryEntry;

struct DocumentEntry {
  DocumentKey key;
  MemoryEntry* memory = nullptr;
  std::string id;
  absl::Time create_time;
  absl::Time own_expire_time = absl::InfiniteFuture();  // what the document itself says
  absl::Time expire_time = absl::InfiniteFuture();      // what holds
  // Of its newest piece of text; of its beginning without any. Infinite: that piece could not be
  // read when the store was opened, so what was there at a moment has to be looked for.
  absl::Time append_time;
  bool sealed = false;
  bool damaged = false;
  // Damaged, and its newest text could not be read when the store was opened: it may be longer.
  bool text_end_unknown = false;
  // Its memory has let it go, or is gone: forks that were made before hold it. It takes no more
  // text.
  bool dropped = false;
  // One append, and one change of what is derived, at a time; others wait.
  bool append_in_flight = false;
  bool derivation_in_flight = false;
  int64_t durable_bytes = 0;
  int64_t token_count = 0;
  std::vector<SegmentEntry> segments;  // by index, without a hole: what is visible
  // On disk there is none from this index on. Beyond `segments` are those left out at Open.
  int64_t stored_segments_end = 0;

  int64_t visible_bytes() const { return segments.empty() ? 0 : segments.back().byte_end; }
  int64_t chunk_count() const {
    return segments.empty() ? 0 : segments.back().first_chunk + segments.back().chunk_count;
  }
  DocumentInfo Info() const;
};

struct MemoryEntry {
  MemoryEntry(int64_t landmark_bytes, LandmarkBlocks* blocks) : landmarks(landmark_bytes, blocks) {}

  // With what is known of its base now.
  MemoryInfo Info() const;

  MemoryInfo info;
  MemoryEntry* base = nullptr;                    // what it is a fork of
  absl::btree_map<MemoryId, MemoryEntry*> forks;  // made of it
  // Deleted: it has no name any more and is here for its forks alone, whose identities are below
  // this one.
  std::optional<MemoryId> deleted_before;
  // What it has let go while others hold it, of its own documents and of its bases': for forks made
  // with an identity below the one here it is still there.
  absl::flat_hash_map<DocumentId, MemoryId> dropped;
  // Its own that it has dropped, by id.
  absl::flat_hash_map<std::string, std::vector<DocumentEntry*>> dropped_by_id;
  absl::btree_map<std::string, SnapshotInfo> snapshots;  // by id
  absl::btree_map<DocumentId, DocumentEntry*> documents;
  absl::flat_hash_map<absl::string_view, DocumentEntry*>
      documents_by_id;  // keys borrow from the entries
  // Documents that will expire, the next one first.
  absl::btree_set<std::pair<absl::Time, DocumentId>> expiring;
  LandmarkList landmarks;
  // Of its documents; not of what is deleted, expires otherwise or turns out to be damaged.
  ChangeLog changes;
  MemoryStore::Totals totals{.memories = 1};  // of its own documents
  MemoryStore::Totals dropped_totals;         // of those of them that it has dropped
};

// Whether a memory has a document among its own or as a fork, and up to when its text counts:
// infinite future for its own. Nothing for one that it does not have, has dropped, or that began
// after the fork's moment.
std::optional<absl::Time> SeenUntil(const MemoryEntry& memory, const DocumentEntry& document);
// The memory and all forks of it, and theirs, that are not deleted.
std::vector<MemoryEntry*> WithForks(MemoryEntry& memory);
// Memories that have the document, but those in `without`.
std::vector<const MemoryEntry*> Holders(const DocumentEntry& document,
                                        const absl::flat_hash_set<MemoryId>& without);

// Counts a document into its memory's totals (sign 1), or out of them (sign -1) before it changes.
void CountDocument(const DocumentEntry& document, int sign);

// Not thread-safe: guarded by its owner's lock.
class Catalog {
 public:
  // A fork's base may be added after it: see LinkForks. `deleted_before`: see MemoryEntry.
  MemoryEntry* AddMemory(MemoryInfo info, int64_t landmark_bytes,
                         std::optional<MemoryId> deleted_before = std::nullopt);
  // Joins each fork to its base; returns those whose base is not there.
  std::vector<MemoryId> LinkForks();
  bool LinkFork(MemoryEntry& fork);  // false: its base is not there
  // The memory lets go of a document that others hold.
  void Drop(MemoryEntry& memory, DocumentEntry& document, MemoryId before);
  // The memory is deleted, and stands for its forks from now on.
  void DropMemory(MemoryEntry& memory, MemoryId before);
  DocumentEntry* AddDocument(MemoryEntry& memory, DocumentId uid, std::string id,
                             absl::Time create_time,
                             absl::Time own_expire_time = absl::InfiniteFuture());
  // Brings the documents of a memory whose ttl has changed into line with it.
  static void UpdateExpiry(MemoryEntry& memory);
  void RemoveMemory(MemoryId memory);  // with its documents; it has no forks
  void RemoveDocument(DocumentId document);

  // Text of a document of `memory` became durable.
  void CountAppended(MemoryEntry& memory, int64_t bytes);
  // Of a tenant, and of all: see MemoryStore::Totals.
  int64_t appended_bytes(const std::string& tenant) const;
  int64_t appended_bytes() const { return appended_bytes_; }

  // Null when there is none. By its identity also one that is deleted and stands for its forks.
  MemoryEntry* FindMemory(MemoryId memory) const;
  MemoryEntry* FindLiveMemory(MemoryId memory) const;
  MemoryEntry* FindMemory(const std::string& tenant, const std::string& id) const;
  DocumentEntry* FindDocument(DocumentId document) const;
  // As `memory` has it, by id.
  DocumentEntry* FindDocument(const MemoryEntry& memory, const std::string& id) const;
  // Also null for one that has expired.
  DocumentEntry* FindDocument(DocumentId document, absl::Time now) const;

  // By tenant, then by id.
  using Tenants = absl::btree_map<std::string, absl::btree_map<std::string, MemoryEntry*>>;
  const Tenants& tenants() const { return tenants_; }
  const absl::flat_hash_map<DocumentId, std::unique_ptr<DocumentEntry>>& documents() const {
    return documents_;
  }
  const absl::flat_hash_map<MemoryId, std::unique_ptr<MemoryEntry>>& memories() const {
    return memories_;
  }
  // Of all memories, and of views of them.
  const LandmarkBlocks& landmark_blocks() const { return landmark_blocks_; }
  LandmarkBlocks& landmark_blocks() { return landmark_blocks_; }

 private:
  LandmarkBlocks landmark_blocks_;
  absl::flat_hash_map<MemoryId, std::unique_ptr<MemoryEntry>> memories_;
  absl::flat_hash_map<DocumentId, std::unique_ptr<DocumentEntry>> documents_;
  Tenants tenants_;
  absl::flat_hash_map<std::string, int64_t> appended_bytes_of_;  // by tenant
  int64_t appended_bytes_ = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_CATALOG_H_
