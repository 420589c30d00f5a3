#include "memory_store/rocksdb/mend_blobs.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>

#include <rocksdb/db.h>
#include <rocksdb/metadata.h>
#include <rocksdb/options.h>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "memory_store/key_after.h"
#include "memory_store/rocksdb/blob_file.h"
#include "memory_store/rocksdb/conversions.h"

namespace mneme {
namespace {

// The pages that were put into a blob file, all when it cannot tell. NOT_FOUND: it is gone.
absl::StatusOr<KeyRange> KeysOf(const StoreFile& file) {
  KeyRange range = {Table::kPages, AllPages().end, ""};
  const absl::Status read = ReadBlobFileKeys(file.path, [&range](absl::string_view key) {
    if (key < range.begin) range.begin = std::string(key);
    if (key > range.end) range.end = std::string(key);
  });
  if (absl::IsNotFound(read)) return read;
  return read.ok() ? range : AllPages();
}

bool IsInUse(Database& database, const StoreFile& file) {
  rocksdb::ColumnFamilyMetaData metadata;
  database.db().GetColumnFamilyMetaData(database.Handle(Table::kPages), &metadata);
  return std::any_of(metadata.blob_files.begin(), metadata.blob_files.end(),
                     [&file](const rocksdb::BlobMetaData& blobs) {
                       return absl::EndsWith(file.name, BlobFileName(blobs.blob_file_number));
                     });
}

// A key not long after `unreadable` from which on records can be read.
std::string NextReadable(rocksdb::Iterator& it, const std::string& unreadable) {
  for (size_t at = unreadable.size(); at-- > 0;) {
    for (int more = 1; more <= 8; ++more) {
      const int byte = static_cast<uint8_t>(unreadable[at]) + more;
      if (byte > 0xff) break;
      std::string key = unreadable.substr(0, at);
      key.push_back(static_cast<char>(byte));
      it.Seek(key);
      if (it.Valid() || it.status().ok()) return key;
    }
  }
  return AllPages().end;
}

// Deletes pages in [begin, end] that cannot be read: they are derived again when they are needed.
absl::Status DeleteUnreadablePages(Database& database, const KeyRange& range,
                                   std::atomic<bool>& cancel) {
  rocksdb::ReadOptions options;
  options.fill_cache = false;
  std::string from = range.begin;
  while (from <= range.end) {
    if (cancel) return absl::CancelledError("the mending was cancelled");
    const std::unique_ptr<rocksdb::Iterator> it(
        database.db().NewIterator(options, database.Handle(Table::kPages)));
    for (it->Seek(from); it->Valid() && it->key().compare(range.end) <= 0; it->Next()) {
      from = KeyAfter(ToView(it->key()));
      if (cancel) return absl::CancelledError("the mending was cancelled");
    }
    if (it->Valid() || it->status().ok()) return absl::OkStatus();
    if (!it->status().IsCorruption()) return ToStatus(it->status(), "read of pages");
    const std::string next = NextReadable(*it, from);
    rocksdb::WriteBatch batch;
    rocksdb::Status status = batch.DeleteRange(database.Handle(Table::kPages), from, next);
    if (status.ok()) status = database.Write(rocksdb::WriteOptions(), &batch);
    RETURN_IF_ERROR(ToStatus(status, "deletion of unreadable pages"));
    LogWarning("memory_store", "pages that cannot be read are given up", {});
    from = next;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status MoveOutOfBlobFile(Database& database, const StoreFile& file) {
  const absl::StatusOr<KeyRange> keys = KeysOf(file);
  if (absl::IsNotFound(keys.status())) return absl::OkStatus();
  RETURN_IF_ERROR(keys.status());
  std::atomic<bool> cancel{false};
  // Its keys may be damaged as well.
  for (const KeyRange& range : {*keys, AllPages()}) {
    RETURN_IF_ERROR(database.Rewrite(range, /*rewrite_blobs=*/true, cancel));
    if (!IsInUse(database, file)) return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat(file.name, " is still in use"));
}

absl::Status GiveUpUnreadableBlobs(Database& database, const StoreFile& file,
                                   std::atomic<bool>& cancel) {
  const absl::StatusOr<KeyRange> keys = KeysOf(file);
  if (absl::IsNotFound(keys.status())) return absl::OkStatus();
  RETURN_IF_ERROR(keys.status());
  RETURN_IF_ERROR(DeleteUnreadablePages(database, *keys, cancel));
  return MoveOutOfBlobFile(database, file);
}

absl::Status MoveAllBlobs(Database& database) {
  rocksdb::ColumnFamilyHandle* pages = database.Handle(Table::kPages);
  // Files older than the oldest that a table refers to go, if one refers to any: so there is a
  // value of nobody for a while.
  const std::string nobodys(1, '\0');
  const auto bytes = static_cast<size_t>(database.db().GetOptions(pages).min_blob_size);
  rocksdb::WriteBatch put, remove;
  rocksdb::Status status = put.Put(pages, nobodys, std::string(bytes, '\0'));
  if (status.ok()) status = remove.Delete(pages, nobodys);
  if (status.ok()) status = database.Write(rocksdb::WriteOptions(), &put);
  RETURN_IF_ERROR(ToStatus(status, "write of a page of nobody"));
  std::atomic<bool> cancel{false};
  absl::Status moved = database.FlushTables();
  if (moved.ok()) {
    moved = database.Rewrite(AllPages(), /*rewrite_blobs=*/true, cancel);
  }
  status = database.Write(rocksdb::WriteOptions(), &remove);
  RETURN_IF_ERROR(ToStatus(status, "deletion of a page of nobody"));
  // What is damaged besides is mended for itself, and moved then.
  return absl::IsDataLoss(moved) ? absl::OkStatus() : moved;
}

}  // namespace mneme
