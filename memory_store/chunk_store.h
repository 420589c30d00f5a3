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
  // CANCELLED once `cancel` is true. UNAVAILABLE: files are still being read; RESOURCE_EXHAUSTED,
  // INTERNAL, DATA_LOSS as Write: call again.
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
  // anew, or, where `may_drop` is set and it cannot be read, gives up the records in it (some of
  // them may then be there as they were earlier). NOT_FOUND: the store has no such file (any more);
  // DATA_LOSS: nothing was changed.
  virtual absl::Status MendFile(const StoreFile& file, bool /*may_drop*/) {
    return absl::NotFoundError(file.name);
  }
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_CHUNK_STORE_H_
