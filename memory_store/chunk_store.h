// ChunkStore: the ordered, durable key-value substrate below the memory store. RocksDB on one
// machine; a distributed store can stand behind the same interface (atomic batches, ordered scans,
// nothing more).

#ifndef MNEME_MEMORY_STORE_CHUNK_STORE_H_
#define MNEME_MEMORY_STORE_CHUNK_STORE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "memory_store/store_files.h"

namespace mneme {

enum class Table : uint8_t {
  kCatalog = 0,   // format, tenants, memories, documents
  kText = 1,      // the text log: the truth
  kSegments = 2,  // derived: segment records with landmarks
  kPages = 3,     // derived: K/V blocks, large values
};
inline constexpr int kTableCount = 4;

// Operations applied together or not at all.
struct WriteBatch {
  enum class Kind : uint8_t { kPut, kDelete, kDeleteRange };
  struct Op {
    Kind kind;
    Table table;
    std::string key;    // kDeleteRange: first key
    std::string value;  // kDeleteRange: one past the last key
  };
  std::vector<Op> ops;
  // It deletes more than it puts: it may use the space that is kept in reserve.
  bool frees_space = false;

  void Put(Table table, std::string key, std::string value) {
    ops.push_back({Kind::kPut, table, std::move(key), std::move(value)});
  }
  void Delete(Table table, std::string key) {
    ops.push_back({Kind::kDelete, table, std::move(key), {}});
  }
  void DeleteRange(Table table, std::string begin, std::string end) {
    ops.push_back({Kind::kDeleteRange, table, std::move(begin), std::move(end)});
  }
};

// Keys [begin, end) of a table.
struct KeyRange {
  Table table{};
  std::string begin;
  std::string end;
};

// Records that are lost with the damaged part of a file: what they were nobody can tell any more.
struct LostRecords {
  std::string file;  // its name
  KeyRange range;    // in which their keys lie, beside those of records that are not lost
  // Calls `visit` with the records of the table in [begin, end) that files other than the damaged
  // part of that one hold, in no order, deleted ones perhaps among them. `newer`: written after
  // that file.
  std::function<absl::Status(
      absl::string_view begin, absl::string_view end,
      const std::function<void(absl::string_view key, absl::string_view value, bool newer)>& visit)>
      scan;
};
// Before records are given up: writes, synced, what has to stand in their place, deletions among it
// (those of the file may be lost; of derived tables that is all, and there is no scan). An error:
// they must not be.
using GiveUp = std::function<absl::Status(const LostRecords&)>;

enum class Durability {
  kSynced,       // on stable storage when Write returns
  kWriteBehind,  // survives a crash of the process soon, of the machine later
};

// Thread-safe.
class ChunkStore {
 public:
  virtual ~ChunkStore() = default;

  // RESOURCE_EXHAUSTED: no space (retry when there is some; the store serves reads meanwhile and
  // recovers by itself); INTERNAL: the disk failed; DATA_LOSS: corruption.
  virtual absl::Status Write(const WriteBatch& batch, Durability durability) = 0;
  // NOT_FOUND when absent.
  virtual absl::StatusOr<std::string> Get(Table table, absl::string_view key) = 0;
  // One result per key, in order.
  virtual std::vector<absl::StatusOr<std::string>> MultiGet(Table table,
                                                            absl::Span<const std::string> keys) = 0;
  // Calls `visit` for keys in [begin, end), ascending, until it returns false. An empty `end` means
  // no bound.
  virtual absl::Status Scan(
      Table table, absl::string_view begin, absl::string_view end,
      const std::function<bool(absl::string_view key, absl::string_view value)>& visit) = 0;
  // Makes everything written so far durable.
  virtual absl::Status Flush() = 0;
  // Takes what was deleted in these ranges off the disk: when it returns OK, no file holds a byte
  // of a record of these ranges that was deleted before the call, nor does a log of earlier writes.
  // Rewrites what lies beside it, so many ranges belong into one call. Long; ends early with
  // CANCELLED once `cancel` is true. UNAVAILABLE: files are still being read, or kept by StoreFiles
  // that somebody holds (nothing is rewritten then); RESOURCE_EXHAUSTED, INTERNAL, DATA_LOSS as
  // Write: call again.
  virtual absl::Status Purge(absl::Span<const KeyRange> ranges, std::atomic<bool>& cancel) = 0;
  // Bytes on disk, and free bytes of the file system.
  virtual int64_t used_bytes() = 0;
  virtual int64_t free_bytes() = 0;

  enum class FilesFor {
    kCheck,   // the files as they are; what was written last may be in the log alone
    kBackup,  // everything written so far, as a whole that opens anywhere
  };
  // The files on this machine that hold the records. A store that keeps none has none. Errors as
  // Write.
  virtual absl::StatusOr<StoreFiles> Files(FilesFor /*purpose*/) { return StoreFiles(); }
  // Mends a file whose bytes are damaged, as far as that can be done: writes what can be read of it
  // anew and gives up the rest once `give_up` agrees (some of what
  // was given up may then be there as it was earlier). NOT_FOUND: the store has no such file (any
  // more); DATA_LOSS: nothing was changed; errors of `give_up`; others as Write.
  virtual absl::Status MendFile(const StoreFile& file, const GiveUp& /*give_up*/) {
    return absl::NotFoundError(file.name);
  }
  // MendFile of every damaged file that keeps Purge from taking something in these ranges off the
  // disk; of large values, derived all of them, those that cannot be read are deleted. Goes on past
  // a file that cannot be mended, and returns the error of the first; CANCELLED as Purge.
  virtual absl::Status MendForPurge(absl::Span<const KeyRange> /*ranges*/,
                                    const GiveUp& /*give_up*/, std::atomic<bool>& /*cancel*/) {
    return absl::OkStatus();
  }
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_CHUNK_STORE_H_
