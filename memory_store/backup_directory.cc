#include "memory_store/backup_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <iterator>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/crash_point.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "memory_store/data_directory.h"

namespace mneme {
namespace {

namespace fs = std::filesystem;

constexpr char kFormatFile[] = "FORMAT";
constexpr char kFormatText[] = "mneme backups 1\n";
constexpr char kLockFile[] = "LOCK";
constexpr char kFilesFolder[] = "files";
constexpr char kBackupsFolder[] = "backups";
constexpr char kUnfinished[] = ".new";
// Damaged files that a message names.
constexpr size_t kDamagesNamedMax = 5;
constexpr char kRestoring[] = "rocksdb.restoring";
constexpr int64_t kListBytesMax = int64_t{256} << 20;

std::string Path(const std::string& folder, absl::string_view name) {
  return absl::StrCat(folder, "/", name);
}

absl::Status MakeFolder(const std::string& path) {
  if (mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return absl::OkStatus();
  return FileError(errno, "cannot create", path);
}

absl::StatusOr<std::vector<std::string>> Names(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    names.push_back(entry.path().filename());
  }
  if (error) return FileError(error.value(), "cannot list", folder);
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<std::string> ReadWhole(const std::string& path, int64_t bytes_max) {
  std::error_code error;
  const auto bytes = static_cast<int64_t>(fs::file_size(path, error));
  if (error) return FileError(error.value(), "cannot read", path);
  std::string contents;
  RETURN_IF_ERROR(ReadFilePieces(path, std::min(bytes, bytes_max), [&](absl::string_view piece) {
    contents.append(piece.data(), piece.size());
    return absl::OkStatus();
  }));
  return contents;
}

absl::Status CheckFormat(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadWhole(Path(path, kFormatFile), 256);
  if (text.ok() && *text == kFormatText) return absl::OkStatus();
  if (!text.ok() && !absl::IsNotFound(text.status())) return text.status();
  return absl::FailedPreconditionError(
      absl::StrCat(path, " is not a directory of Mneme backups: ",
                   text.ok() ? "its FORMAT is another" : "it has no FORMAT file"));
}

absl::StatusOr<BackupList> ReadList(const std::string& path, int64_t id) {
  const std::string file = Path(Path(path, kBackupsFolder), absl::StrCat(id));
  absl::StatusOr<std::string> text = ReadWhole(file, kListBytesMax);
  if (absl::IsNotFound(text.status())) {
    return absl::NotFoundError(absl::StrCat("no backup ", id, " in ", path));
  }
  RETURN_IF_ERROR(text.status());
  ASSIGN_OR_RETURN(BackupList list, DecodeBackupList(file, *text));
  if (list.info.id == id) return list;
  return absl::DataLossError(absl::StrCat(file, " says that it is backup ", list.info.id));
}

// Ids of the backups that are there, ascending.
absl::StatusOr<std::vector<int64_t>> Ids(const std::string& path) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, Names(Path(path, kBackupsFolder)));
  std::vector<int64_t> ids;
  for (const std::string& name : names) {
    int64_t id = 0;
    if (absl::SimpleAtoi(name, &id) && id > 0) ids.push_back(id);
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

// Writes a new file piece by piece; synced when Close returns. Gone if it never came to that.
class FileWriter {
 public:
  explicit FileWriter(std::string path) : path_(std::move(path)) {}
  ~FileWriter() {
    if (fd_ < 0) return;
    close(fd_);
    unlink(path_.c_str());
  }
  absl::Status Open() {
    fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    return fd_ >= 0 ? absl::OkStatus() : FileError(errno, "cannot write", path_);
  }
  absl::Status Append(absl::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t count = write(fd_, bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return FileError(errno, "cannot write", path_);
      bytes.remove_prefix(static_cast<size_t>(count));
    }
    return absl::OkStatus();
  }
  absl::Status Close() {
    const bool synced = fsync(fd_) == 0;
    const int error = errno;
    const bool closed = close(std::exchange(fd_, -1)) == 0;
    if (synced && closed) return absl::OkStatus();
    unlink(path_.c_str());
    return FileError(synced ? errno : error, "cannot sync", path_);
  }

 private:
  const std::string path_;
  int fd_ = -1;
};

// Copies the first `bytes` bytes of a file, synced; returns their crc32c.
absl::StatusOr<uint32_t> CopyFile(const std::string& from, int64_t bytes, const std::string& to,
                                  const std::function<absl::Status(int64_t)>& step) {
  FileWriter writer(to);
  RETURN_IF_ERROR(writer.Open());
  uint32_t crc = 0;
  const auto take = [&](absl::string_view piece) {
    crc = Crc32c(piece, crc);
    const absl::Status written = writer.Append(piece);
    return written.ok() ? step(static_cast<int64_t>(piece.size())) : written;
  };
  RETURN_IF_ERROR(ReadFilePieces(from, bytes, take));
  RETURN_IF_ERROR(writer.Close());
  return crc;
}

// Why a file in files/ is not what was written; empty: it is. Errors of `step`.
absl::StatusOr<std::string> DamageOf(const std::string& path, const BackupFile& file,
                                     const std::function<absl::Status(int64_t)>& step) {
  std::error_code error;
  const auto bytes = static_cast<int64_t>(fs::file_size(path, error));
  if (error) return absl::StrCat(path, " cannot be read: ", error.message());
  if (bytes != file.bytes) {
    return absl::StrCat(path, " has ", bytes, " bytes, recorded ", file.bytes);
  }
  absl::Status stopped;
  const absl::StatusOr<uint32_t> crc = FileCrc32c(path, bytes, [&](int64_t count) {
    stopped = step(count);
    return stopped;
  });
  RETURN_IF_ERROR(stopped);
  if (!crc.ok()) return std::string(crc.status().message());
  if (*crc == file.crc32c) return std::string();
  return absl::StrCat(path, " has crc ", *crc, ", recorded ", file.crc32c);
}

// Copies a file of which bytes are damaged or missing; those that cannot be read become zeros.
absl::Status CopyAsFarAsReadable(const std::string& from, int64_t bytes, const std::string& to) {
  FileWriter writer(to);
  RETURN_IF_ERROR(writer.Open());
  int64_t copied = 0;
  absl::Status written;
  const absl::Status read = ReadFilePieces(from, bytes, [&](absl::string_view piece) {
    copied += static_cast<int64_t>(piece.size());
    written = writer.Append(piece);
    return written;
  });
  RETURN_IF_ERROR(written);
  if (!read.ok()) {
    const std::string zeros(1 << 20, '\0');
    for (; copied < bytes; copied += static_cast<int64_t>(zeros.size())) {
      const auto count = std::min<int64_t>(bytes - copied, static_cast<int64_t>(zeros.size()));
      RETURN_IF_ERROR(
          writer.Append(absl::string_view(zeros).substr(0, static_cast<size_t>(count))));
    }
  }
  return writer.Close();
}

// HOST:DIRECTORY of the data directory that the files are of.
std::string StoreName(const StoreFiles& files) {
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  std::string name = absl::StrCat(host, ":");
  if (!files.files().empty()) {
    std::error_code error;
    const fs::path rocksdb = fs::path(files.files()[0].path).parent_path();
    absl::StrAppend(&name, fs::absolute(rocksdb, error).lexically_normal().parent_path().string());
  }
  // A line of a list.
  for (char& c : name) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = '_';
  }
  return name;
}

// `data_dir` as a folder in which a restore may begin.
absl::Status PrepareRestore(const std::string& data_dir) {
  if (data_dir.empty()) return absl::InvalidArgumentError("the data directory's path is empty");
  RETURN_IF_ERROR(MakeFolder(data_dir));
  ASSIGN_OR_RETURN(const std::vector<std::string> names, Names(data_dir));
  for (const std::string& name : names) {
    if (name == kRestoring || name == "lost+found" || name == "LOCK") continue;
    return absl::FailedPreconditionError(absl::StrCat(
        data_dir, " holds \"", name, "\": a backup is restored into an empty directory"));
  }
  std::error_code error;
  fs::remove_all(Path(data_dir, kRestoring), error);
  if (error) return FileError(error.value(), "cannot remove", Path(data_dir, kRestoring));
  return MakeFolder(Path(data_dir, kRestoring));
}

// Copies a file of a backup and says what is damaged of it; what cannot be read of it is zeros.
// Errors of `step` and of the disk written to.
absl::StatusOr<std::string> RestoreFile(const std::string& from, const BackupFile& file,
                                        const std::string& to,
                                        const std::function<absl::Status(int64_t)>& step) {
  const absl::StatusOr<uint32_t> crc = CopyFile(from, file.bytes, to, step);
  if (absl::IsDataLoss(crc.status()) || absl::IsNotFound(crc.status())) {
    RETURN_IF_ERROR(CopyAsFarAsReadable(from, file.bytes, to));
    return std::string(crc.status().message());
  }
  RETURN_IF_ERROR(crc.status());
  if (*crc == file.crc32c) return std::string();
  return absl::StrCat(from, " has crc ", *crc, ", recorded ", file.crc32c);
}

bool OnlyDerived(const CheckedBackup& backup) {
  return backup.info.damage.empty() &&
         std::all_of(backup.damage.begin(), backup.damage.end(),
                     [](const BackupDamage& damage) { return damage.is_derived; });
}

// DATA_LOSS of a backup that cannot be restored: what is damaged, and what can be done.
absl::Status DamagedBackup(const std::string& path, const CheckedBackup& backup,
                           const BackupStep& step) {
  ASSIGN_OR_RETURN(const std::vector<CheckedBackup> all, BackupDirectory::Check(path, 0, step));
  std::vector<int64_t> whole;
  for (const CheckedBackup& one : all) {
    if (one.is_whole()) whole.push_back(one.info.id);
  }
  std::string message =
      absl::StrCat("backup ", backup.info.id, " of ", path, " is damaged: ", backup.info.damage);
  for (size_t i = 0; i < backup.damage.size() && i < kDamagesNamedMax; ++i) {
    absl::StrAppend(&message, i == 0 ? "" : "; ", backup.damage[i].what,
                    backup.damage[i].is_derived ? " (derived data)" : " (not derived)");
  }
  if (backup.damage.size() > kDamagesNamedMax) {
    absl::StrAppend(&message, "; and ", backup.damage.size() - kDamagesNamedMax, " more files");
  }
  absl::StrAppend(&message, ". Whole are: ",
                  whole.empty() ? "none" : absl::StrCat("backup ", absl::StrJoin(whole, ", ")));
  if (OnlyDerived(backup)) {
    absl::StrAppend(&message,
                    ". --restore-damaged restores this one all the same: its text is whole, and "
                    "what is damaged is derived from it again");
  }
  return absl::DataLossError(message);
}

}  // namespace

absl::Status CheckApart(const std::string& backup_dir, const std::string& data_dir) {
  const auto real = [](const std::string& path) {
    std::error_code error;
    const fs::path whole = fs::weakly_canonical(fs::absolute(path, error), error);
    return (error ? fs::path(path).lexically_normal() : whole) / "";
  };
  const fs::path backups = real(backup_dir), data = real(data_dir);
  const auto lies_in = [](const fs::path& inner, const fs::path& outer) {
    // All of the outer one's parts but the empty last one.
    return std::mismatch(outer.begin(), std::prev(outer.end()), inner.begin(), inner.end()).first ==
           std::prev(outer.end());
  };
  const bool inside = lies_in(backups, data), around = lies_in(data, backups);
  if (!inside && !around) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the backup directory ", backup_dir,
      inside && around ? " is" : (inside ? " lies in" : " is around"), " the data directory ",
      data_dir, ": backups belong elsewhere, best on another disk"));
}

absl::StatusOr<std::unique_ptr<BackupDirectory>> BackupDirectory::Open(const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError("the backup directory's path is empty");
  RETURN_IF_ERROR(MakeFolder(path));
  const std::string format = Path(path, kFormatFile);
  if (access(format.c_str(), F_OK) != 0) {
    ASSIGN_OR_RETURN(const std::vector<std::string> names, Names(path));
    for (const std::string& name : names) {
      if (name == kLockFile || name == "lost+found" || name == absl::StrCat(kFormatFile, ".new")) {
        continue;
      }
      return absl::FailedPreconditionError(
          absl::StrCat(path, " is not a directory of Mneme backups: it holds \"", name,
                       "\" and no FORMAT file"));
    }
  }
  const std::string lock = Path(path, kLockFile);
  const int fd = open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return FileError(errno, "cannot write", lock);
  std::unique_ptr<BackupDirectory> directory(new BackupDirectory(path, fd));
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return FileError(errno, "cannot lock", lock);
    return absl::FailedPreconditionError(
        absl::StrCat(path, " is in use: another backup or deletion runs"));
  }
  if (access(format.c_str(), F_OK) != 0) {
    RETURN_IF_ERROR(WriteFileDurably(path, kFormatFile, kFormatText));
  }
  RETURN_IF_ERROR(CheckFormat(path));
  RETURN_IF_ERROR(MakeFolder(Path(path, kFilesFolder)));
  RETURN_IF_ERROR(MakeFolder(Path(path, kBackupsFolder)));
  RETURN_IF_ERROR(SyncFolder(path));
  return directory;
}

BackupDirectory::~BackupDirectory() { close(lock_fd_); }

absl::StatusOr<BackupInfo> BackupDirectory::Create(const StoreFiles& files, BackupInfo info,
                                                   const BackupStep& step) {
  RETURN_IF_ERROR(RemoveUnused());
  ASSIGN_OR_RETURN(const std::vector<int64_t> ids, Ids(path_));
  BackupProgress progress;
  for (const StoreFile& file : files.files()) progress.bytes_total += file.bytes;
  BackupList list;
  int64_t mended_files = 0;
  const std::string folder = Path(path_, kFilesFolder);
  for (const StoreFile& file : files.files()) {
    BackupFile entry{file.name, file.bytes, file.crc32c.value_or(0), IsDerived(file)};
    const std::string earlier = Path(folder, entry.SharedName());
    if (file.crc32c.has_value() && access(earlier.c_str(), F_OK) == 0) {
      const int64_t shared_before = progress.bytes_shared;
      ASSIGN_OR_RETURN(const std::string damage, DamageOf(earlier, entry, [&](int64_t bytes) {
                         progress.bytes_shared += bytes;
                         return step(progress);
                       }));
      if (damage.empty()) {
        list.files.push_back(std::move(entry));
        continue;
      }
      progress.bytes_shared = shared_before;
      ++mended_files;
      LogWarning("backup", "a file of earlier backups is damaged; it is copied anew",
                 {{"file", earlier}, {"damage", damage}});
    }
    const std::string aside = Path(folder, absl::StrCat(file.name, kUnfinished));
    if (!file.contents.empty()) {
      FileWriter writer(aside);
      RETURN_IF_ERROR(writer.Open());
      RETURN_IF_ERROR(writer.Append(file.contents));
      RETURN_IF_ERROR(writer.Close());
      entry.bytes = static_cast<int64_t>(file.contents.size());
      entry.crc32c = Crc32c(file.contents);
      progress.bytes_copied += entry.bytes;
    } else {
      ASSIGN_OR_RETURN(entry.crc32c, CopyFile(file.path, file.bytes, aside, [&](int64_t bytes) {
                         progress.bytes_copied += bytes;
                         return step(progress);
                       }));
      if (file.crc32c.has_value() && entry.crc32c != *file.crc32c) {
        unlink(aside.c_str());
        return absl::DataLossError(absl::StrCat(file.path, " is damaged (crc ", entry.crc32c,
                                                ", recorded ", *file.crc32c,
                                                "): mend the store before it is backed up"));
      }
    }
    const std::string shared = Path(folder, entry.SharedName());
    if (rename(aside.c_str(), shared.c_str()) != 0) {
      return FileError(errno, "cannot write", shared);
    }
    CrashPoint("backup file copied");
    list.files.push_back(std::move(entry));
  }
  RETURN_IF_ERROR(SyncFolder(folder));
  CrashPoint("backup files copied");
  info.id = ids.empty() ? 1 : ids.back() + 1;
  list.info = std::move(info);
  list.info.store = StoreName(files);
  RETURN_IF_ERROR(WriteFileDurably(Path(path_, kBackupsFolder), absl::StrCat(list.info.id),
                                   EncodeBackupList(list)));
  CrashPoint("backup listed");
  ASSIGN_OR_RETURN(BackupList written, ReadList(path_, list.info.id));
  written.info.mended_files = mended_files;
  return written.info;
}

absl::Status BackupDirectory::Delete(int64_t id) {
  const std::string folder = Path(path_, kBackupsFolder);
  const std::string list = Path(folder, absl::StrCat(id));
  if (id <= 0 || access(list.c_str(), F_OK) != 0) {
    return absl::NotFoundError(absl::StrCat("no backup ", id, " in ", path_));
  }
  if (unlink(list.c_str()) != 0) return FileError(errno, "cannot remove", list);
  RETURN_IF_ERROR(SyncFolder(folder));
  return RemoveUnused();
}

absl::Status BackupDirectory::RemoveUnused() {
  ASSIGN_OR_RETURN(const std::vector<int64_t> ids, Ids(path_));
  std::set<std::string> used;
  for (const int64_t id : ids) {
    const absl::StatusOr<BackupList> list = ReadList(path_, id);
    // What a list that cannot be read needs, nobody knows: everything stays until it is deleted.
    if (!list.ok()) return absl::OkStatus();
    for (const BackupFile& file : list->files) used.insert(file.SharedName());
  }
  const std::string folder = Path(path_, kFilesFolder);
  ASSIGN_OR_RETURN(const std::vector<std::string> names, Names(folder));
  for (const std::string& name : names) {
    if (used.contains(name)) continue;
    const std::string file = Path(folder, name);
    if (unlink(file.c_str()) != 0) return FileError(errno, "cannot remove", file);
  }
  return SyncFolder(folder);
}

absl::StatusOr<std::vector<BackupInfo>> BackupDirectory::List(const std::string& path) {
  if (access(path.c_str(), F_OK) != 0 && errno == ENOENT) return std::vector<BackupInfo>();
  RETURN_IF_ERROR(CheckFormat(path));
  ASSIGN_OR_RETURN(const std::vector<int64_t> ids, Ids(path));
  std::vector<BackupInfo> infos;
  for (const int64_t id : ids) {
    const absl::StatusOr<BackupList> list = ReadList(path, id);
    if (absl::IsNotFound(list.status())) continue;  // just deleted
    BackupInfo info;
    if (list.ok()) info = list->info;
    if (!list.ok()) {
      info.id = id;
      info.damage = std::string(list.status().message());
    }
    infos.push_back(std::move(info));
  }
  return infos;
}

absl::StatusOr<std::vector<CheckedBackup>> BackupDirectory::Check(const std::string& path,
                                                                  int64_t id,
                                                                  const BackupStep& step) {
  std::vector<int64_t> ids = {id};
  RETURN_IF_ERROR(CheckFormat(path));
  if (id == 0) {
    ASSIGN_OR_RETURN(ids, Ids(path));
  }
  std::vector<std::pair<int64_t, absl::StatusOr<BackupList>>> lists;
  std::map<std::string, BackupFile> files;  // each once, whichever backups have it
  for (const int64_t one : ids) {
    absl::StatusOr<BackupList> list = ReadList(path, one);
    if (absl::IsNotFound(list.status())) {
      if (id != 0) return list.status();
      continue;  // just deleted
    }
    if (list.ok()) {
      for (const BackupFile& file : list->files) files.emplace(file.SharedName(), file);
    }
    lists.emplace_back(one, std::move(list));
  }
  BackupProgress progress;
  for (const auto& [name, file] : files) progress.bytes_total += file.bytes;
  std::map<std::string, std::string> damage;
  for (const auto& [name, file] : files) {
    ASSIGN_OR_RETURN(damage[name],
                     DamageOf(Path(Path(path, kFilesFolder), name), file, [&](int64_t bytes) {
                       progress.bytes_shared += bytes;
                       return step(progress);
                     }));
  }
  std::vector<CheckedBackup> checked;
  for (const auto& [one, list] : lists) {
    // Deleted meanwhile, and its files with it.
    if (absl::IsNotFound(ReadList(path, one).status())) continue;
    CheckedBackup backup;
    if (list.ok()) {
      backup.info = list->info;
      for (const BackupFile& file : list->files) {
        const std::string& what = damage[file.SharedName()];
        if (!what.empty()) backup.damage.push_back({file.name, file.is_derived, what});
      }
    } else {
      backup.info.id = one;
      backup.info.damage = std::string(list.status().message());
    }
    checked.push_back(std::move(backup));
  }
  return checked;
}

absl::StatusOr<RestoredBackup> BackupDirectory::Restore(const std::string& path,
                                                        const RestoreOptions& options,
                                                        const std::string& data_dir,
                                                        const BackupStep& step) {
  RETURN_IF_ERROR(CheckFormat(path));
  int64_t id = options.id;
  if (id == 0) {
    ASSIGN_OR_RETURN(const std::vector<int64_t> ids, Ids(path));
    if (ids.empty()) return absl::NotFoundError(absl::StrCat("no backup in ", path));
    id = ids.back();
  }
  absl::StatusOr<BackupList> list = ReadList(path, id);
  if (absl::IsDataLoss(list.status())) {
    CheckedBackup damaged;
    damaged.info.id = id;
    damaged.info.damage = std::string(list.status().message());
    return DamagedBackup(path, damaged, step);
  }
  RETURN_IF_ERROR(list.status());
  RETURN_IF_ERROR(PrepareRestore(data_dir));
  const std::string aside = Path(data_dir, kRestoring);
  CheckedBackup restored{.info = list->info};
  BackupProgress progress;
  progress.bytes_total = list->info.bytes;
  for (const BackupFile& file : list->files) {
    const std::string from = Path(Path(path, kFilesFolder), file.SharedName());
    ASSIGN_OR_RETURN(const std::string damage,
                     RestoreFile(from, file, Path(aside, file.name), [&](int64_t bytes) {
                       progress.bytes_copied += bytes;
                       return step(progress);
                     }));
    if (!damage.empty()) restored.damage.push_back({file.name, file.is_derived, damage});
  }
  if (!restored.is_whole() && !(options.allow_derived_damage && OnlyDerived(restored))) {
    return DamagedBackup(path, restored, step);
  }
  RETURN_IF_ERROR(SyncFolder(aside));
  const std::string place = Path(data_dir, "rocksdb");
  if (rename(aside.c_str(), place.c_str()) != 0) return FileError(errno, "cannot write", place);
  RETURN_IF_ERROR(WriteFormatFile(data_dir));
  return RestoredBackup{std::move(restored.info), std::move(restored.damage)};
}

}  // namespace mneme
