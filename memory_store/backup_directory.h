// A directory of backups. A backup is a list of files; files are shared between backups, so that a
// new one copies only what the ones before it lack. Whole or not there: its list is written last.
// Layout: docs/storage_format.md, "Backups".

#ifndef MNEME_MEMORY_STORE_BACKUP_DIRECTORY_H_
#define MNEME_MEMORY_STORE_BACKUP_DIRECTORY_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "memory_store/store_files.h"

namespace mneme {

// What a backup says of itself.
struct BackupInfo {
  int64_t id = 0;  // counts up from 1
  absl::Time create_time;
  std::string version;       // of the program that made it
  uint64_t fingerprint = 0;  // of what was derived in it
  int64_t memories = 0;
  int64_t documents = 0;
  int64_t durable_bytes = 0;  // of text
  int64_t files = 0;
  int64_t bytes = 0;  // of all its files; some are shared with other backups
  // Not empty: its list is damaged, and nothing but the id is known of it.
  std::string damage;
};

struct BackupProgress {
  int64_t bytes_total = 0;
  int64_t bytes_copied = 0;
  int64_t bytes_shared = 0;  // there already
};
// Called at least once a MiB copied; an error ends the work and is its result.
using BackupStep = std::function<absl::Status(const BackupProgress&)>;

// Holds the directory's lock until it goes: one changes it at a time. Thread-compatible.
class BackupDirectory {
 public:
  // Creates the directory (not its parents) when it is not there. FAILED_PRECONDITION: it is in
  // use, of another format, or holds something else; other errors as FileError.
  static absl::StatusOr<std::unique_ptr<BackupDirectory>> Open(const std::string& path);
  ~BackupDirectory();
  BackupDirectory(const BackupDirectory&) = delete;
  BackupDirectory& operator=(const BackupDirectory&) = delete;

  // Copies `files`. `info`: all but id, files and bytes. DATA_LOSS: a file is damaged (a backup
  // holds no damage); RESOURCE_EXHAUSTED: the disk is full; errors of `step`. After an error the
  // backup is not there, and what was copied goes with the next change.
  absl::StatusOr<BackupInfo> Create(const StoreFiles& files, BackupInfo info,
                                    const BackupStep& step);
  // With all files that no other backup has. NOT_FOUND.
  absl::Status Delete(int64_t id);

  // The next two need no lock, and not that the directory can be written.
  // By id; none before the directory is made. FAILED_PRECONDITION: it is something else.
  static absl::StatusOr<std::vector<BackupInfo>> List(const std::string& path);
  // Makes a data directory of a backup (id 0: the newest). `data_dir` is empty, not there, or left
  // by a restore that did not end: FAILED_PRECONDITION otherwise. NOT_FOUND: no such backup;
  // DATA_LOSS: it is damaged. Every byte is checked before `data_dir` becomes a data directory.
  static absl::StatusOr<BackupInfo> Restore(const std::string& path, int64_t id,
                                            const std::string& data_dir, const BackupStep& step);

 private:
  BackupDirectory(std::string path, int lock_fd) : path_(std::move(path)), lock_fd_(lock_fd) {}

  // Removes what belongs to no backup.
  absl::Status RemoveUnused();

  const std::string path_;
  const int lock_fd_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_BACKUP_DIRECTORY_H_
