// Between RocksDB's words and ours: statuses and views of bytes.

#ifndef MNEME_MEMORY_STORE_ROCKSDB_CONVERSIONS_H_
#define MNEME_MEMORY_STORE_ROCKSDB_CONVERSIONS_H_

#include <rocksdb/slice.h>
#include <rocksdb/status.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace mneme {

inline rocksdb::Slice ToSlice(absl::string_view bytes) { return {bytes.data(), bytes.size()}; }
inline absl::string_view ToView(const rocksdb::Slice& slice) {
  return {slice.data(), slice.size()};
}

// `what` was being done, and begins the message. RESOURCE_EXHAUSTED, marked as a full store: no
// space; NOT_FOUND; DATA_LOSS: corruption; INTERNAL: all else.
absl::Status ToStatus(const rocksdb::Status& status, absl::string_view what);

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_CONVERSIONS_H_
