// The list of one backup: what it says of itself, and its files. Lines of text, written once.
// Format: docs/storage_format.md, "Backups".

#ifndef MNEME_MEMORY_STORE_BACKUP_LIST_H_
#define MNEME_MEMORY_STORE_BACKUP_LIST_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "memory_store/store_files.h"

namespace mneme {

// What a backup says of itself.
struct BackupInfo {
  int64_t id = 0;  // counts up from 1
  absl::Time create_time;
  std::string version;  // of the program that made it
  // HOST:DIRECTORY, the data directory that it is of; empty: of a version that did not say.
  std::string store;
  uint64_t fingerprint = 0;  // of what was derived in it
  int64_t memories = 0;
  int64_t documents = 0;
  int64_t durable_bytes = 0;  // of text
  int64_t files = 0;
  int64_t bytes = 0;  // of all its files; some are shared with other backups
  // Not empty: its list is damaged, and nothing but the id is known of it.
  std::string damage;
  // Of one just made, not in the list: files of earlier backups that were damaged and were copied
  // anew.
  int64_t mended_files = 0;
};

struct BackupFile {
  std::string name;
  int64_t bytes = 0;
  uint32_t crc32c = 0;
  // It holds nothing but what is derived from text.
  bool is_derived = false;

  // In files/: what the file is, so that equal names are equal files.
  std::string SharedName() const;
};

struct BackupList {
  BackupInfo info;
  std::vector<BackupFile> files;
};

// Whether a store can do without what is in a file.
bool IsDerived(const StoreFile& file);

std::string EncodeBackupList(const BackupList& list);
// `path`: for messages. DATA_LOSS: damaged. FAILED_PRECONDITION: of a newer version.
absl::StatusOr<BackupList> DecodeBackupList(const std::string& path, absl::string_view text);

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_BACKUP_LIST_H_
