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
#include "memory_store/backup_list.h"
#include "memory_store/store_files.h"

namespace mneme {

struct BackupProgress {
  int64_t bytes_total = 0;
  int64_t bytes_copied = 0;
  int64_t bytes_shared = 0;  // there already, and checked
};
// Called at least once a MiB copied or checked; an error ends the work and is its result.
using BackupStep = std::function<absl::Status(const BackupProgress&)>;

// A file of a backup that is not what was written.
struct BackupDamage {
  std::string file;  // its name in the store
  bool is_derived = false;
  std::string what;
};

struct CheckedBackup {
  BackupInfo info;  // with its `damage`: of the list
  std::vector<BackupDamage> damage;

  bool is_whole() const { return info.damage.empty() && damage.empty(); }
};

struct RestoreOptions {
  int64_t id = 0;  // 0: the newest
  // Also a backup of which files of derived data are damaged: as far as they can be read. The store
  // mends them as it mends its own.
  bool allow_derived_damage = false;
};

struct RestoredBackup {
  BackupInfo info;
  std::vector<BackupDamage> damage;  // of derived data
};

// INVALID_ARGUMENT when one of a backup directory and a data directory is the other, or lies in it
// (links followed): a backup has nothing to do where its store is, nor the store among backups.
absl::Status CheckApart(const std::string& backup_dir, const std::string& data_dir);

// Holds the directory's lock until it goes: one changes it at a time. Thread-compatible.
class BackupDirectory {
 public:
  // Creates the directory (not its parents) when it is not there. FAILED_PRECONDITION: it is in
  // use, of another format, or holds something else; other errors as FileError.
  static absl::StatusOr<std::unique_ptr<BackupDirectory>> Open(const std::string& path);
  ~BackupDirectory();
  BackupDirectory(const BackupDirectory&) = delete;
  BackupDirectory& operator=(const BackupDirectory&) = delete;

  // Copies `files`, but for those that are there already: they are read, and one that is not as it
  // was written is copied anew, which mends the backups that have it. `info`: all but id, store,
  // files and bytes. DATA_LOSS: a file of the store is damaged (a backup holds no damage);
  // RESOURCE_EXHAUSTED: the disk is full; errors of `step`. After an error the backup is not there,
  // and what was copied goes with the next change.
  absl::StatusOr<BackupInfo> Create(const StoreFiles& files, BackupInfo info,
                                    const BackupStep& step);
  // With all files that no other backup has. NOT_FOUND.
  absl::Status Delete(int64_t id);

  // The next three need no lock, and not that the directory can be written.
  // By id; none before the directory is made. FAILED_PRECONDITION: it is something else.
  static absl::StatusOr<std::vector<BackupInfo>> List(const std::string& path);
  // Reads all files of a backup, or of all (id 0), by id. NOT_FOUND; errors of `step`.
  static absl::StatusOr<std::vector<CheckedBackup>> Check(const std::string& path, int64_t id,
                                                          const BackupStep& step);
  // Makes a data directory of a backup. `data_dir` is empty, not there, or left by a restore that
  // did not end: FAILED_PRECONDITION otherwise. NOT_FOUND: no such backup; DATA_LOSS: it is damaged
  // (the message says which are whole, and what can be done). Every byte is checked before
  // `data_dir` becomes a data directory.
  static absl::StatusOr<RestoredBackup> Restore(const std::string& path,
                                                const RestoreOptions& options,
                                                const std::string& data_dir,
                                                const BackupStep& step);

 private:
  BackupDirectory(std::string path, int lock_fd) : path_(std::move(path)), lock_fd_(lock_fd) {}

  // Removes what belongs to no backup.
  absl::Status RemoveUnused();

  const std::string path_;
  const int lock_fd_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_BACKUP_DIRECTORY_H_
