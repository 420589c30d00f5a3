// DeletionPlan: what the deletion of a document or a memory does to all that share documents with
// it. A document goes when the last memory drops it. While others hold it, it stays for them: the
// memory that drops it says so in a drop record, or is deleted and stays without a name for its
// forks, and text after the latest moment that anybody holds goes.

#ifndef MNEME_MEMORY_STORE_DELETION_PLAN_H_
#define MNEME_MEMORY_STORE_DELETION_PLAN_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "memory_store/chunk_store.h"
#include "memory_store/ids.h"
#include "memory_store/keys.h"
#include "memory_store/records.h"

namespace mneme {

struct DeletionPlan {
  // A document that loses its end: nobody holds it beyond a moment.
  struct CutOff {
    DocumentKey key;
    absl::Time until;
    int64_t keep_bytes = 0;
    // One fewer than end there: what was the middle of a text may be cut otherwise at its end.
    int64_t keep_segments = 0;
  };

  PurgeId id;
  PurgeRecord record;
  // Forks with an identity below this one have been made before.
  MemoryId before{};
  std::vector<DocumentKey> deleted;
  std::vector<CutOff> cut_off;
  // Memories that drop a document that others hold. Not the memory of `id` if that goes.
  std::vector<std::pair<MemoryId, DocumentId>> drops;
  // Deletion of a memory: it stays for its forks; or it goes, with those of its bases that had
  // stayed for it alone.
  bool keeps_memory = false;
  std::vector<MemoryId> removed_memories;

  bool deletes_memory() const { return id.document == DocumentId{}; }
  // Something leaves the disk.
  bool purges() const { return deletes_memory() || !deleted.empty() || !cut_off.empty(); }
};

// Deletes from a table of text or of what is derived what comes after a document's first bytes and
// segments.
void DeleteEnd(const DeletionPlan::CutOff& cut, Table table, WriteBatch* batch);

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_DELETION_PLAN_H_
