// The close record: what a store that was closed in good order says of those files of RocksDB that
// have no checksum which tells a damaged end from one that was never written (its log, its
// MANIFEST, its CURRENT). Compared when the store is opened again, and removed: after a crash there
// is none, and then an end that was cut off is what a crash leaves. Format:
// docs/storage_format.md, "Close record".

#ifndef MNEME_MEMORY_STORE_ROCKSDB_CLOSE_RECORD_H_
#define MNEME_MEMORY_STORE_ROCKSDB_CLOSE_RECORD_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace mneme {

// In and of `data_dir`/rocksdb, which nobody uses any more. Errors as FileError.
absl::Status WriteCloseRecord(const std::string& data_dir);

// Names of the files that are not what they were when the store was closed (the record itself among
// them when it is damaged); none without a record. DATA_LOSS: without one of them the store cannot
// be opened whole (MANIFEST, CURRENT).
absl::StatusOr<std::vector<std::string>> CheckCloseRecord(const std::string& data_dir);
// The same; but for a DATA_LOSS the record is gone when this returns.
absl::StatusOr<std::vector<std::string>> TakeCloseRecord(const std::string& data_dir);

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_CLOSE_RECORD_H_
