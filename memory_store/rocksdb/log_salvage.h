// Salvage of RocksDB's write-ahead log. RocksDB takes a record whose length is damaged for the torn
// end of the log, and drops what follows in silence; behind a damaged fragment of a long record
// RocksDB 7.8 refuses the next long one, and with it the whole log. So a log is read here before
// RocksDB reads it, and when there are good records behind damaged ones it is written anew without
// the latter. What is torn at its very end is left to RocksDB.
//
// The log's format: github.com/facebook/rocksdb/wiki, "Write Ahead Log File Format".

#ifndef MNEME_MEMORY_STORE_ROCKSDB_LOG_SALVAGE_H_
#define MNEME_MEMORY_STORE_ROCKSDB_LOG_SALVAGE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme {

struct LogSalvage {
  int64_t records = 0;        // whole and good
  int64_t damaged_bytes = 0;  // with good records behind them
  std::string log;            // of the good records alone; empty unless damaged_bytes > 0
};

// Any bytes give a result.
LogSalvage SalvageLog(absl::string_view log);

// A log that was salvaged.
struct SalvagedLog {
  std::string name;
  int64_t damaged_bytes = 0;  // left out of it
};
// Salvages every log in a folder of RocksDB that nobody uses, or with `write` false only looks;
// returns those that are damaged. Errors as FileError: nothing but whole logs has been changed.
absl::StatusOr<std::vector<SalvagedLog>> SalvageLogs(const std::string& folder, bool write);

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_LOG_SALVAGE_H_
