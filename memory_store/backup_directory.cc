#include "memory_store/backup_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/crash_point.h"
#include "common/crc32c.h"
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
constexpr char kListHead[] = "mneme backup 1";
constexpr char kUnfinished[] = ".new";
constexpr char kRestoring[] = "rocksdb.restoring";
constexpr int64_t kListBytesMax = int64_t{256} << 20;

struct BackupFile {
  std::string name;
  int64_t bytes = 0;
  uint32_t crc32c = 0;

  // In files/: what the file is, so that equal names are equal files.
  std::string SharedName() const {
    return absl::StrCat(absl::Hex(crc32c, absl::kZeroPad8), "-", bytes, "-", name);
  }
};

struct BackupList {
  BackupInfo info;
  std::vector<BackupFile> files;
};

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

std::string EndLine(absl::string_view text) {
  return absl::StrCat("end ", absl::Hex(Crc32c(text), absl::kZeroPad8), "\n");
}

std::string EncodeList(const BackupList& list) {
  const BackupInfo& info = list.info;
  std::string text = absl::StrCat(
      kListHead, "\nid ", info.id, "\ncreated_us ", absl::ToUnixMicros(info.create_time),
      "\nversion ", info.version, "\nstore_format ", kStoreFormat, "\nfingerprint ",
      absl::Hex(info.fingerprint, absl::kZeroPad16), "\nmemories ", info.memories, "\ndocuments ",
      info.documents, "\ndurable_bytes ", info.durable_bytes, "\n");
  for (const BackupFile& file : list.files) {
    absl::StrAppend(&text, "file ", absl::Hex(file.crc32c, absl::kZeroPad8), " ", file.bytes, " ",
                    file.name, "\n");
  }
  absl::StrAppend(&text, EndLine(text));
  return text;
}

// A file of a list. False: no such line, or a name that leads elsewhere.
bool ParseFile(absl::string_view text, BackupFile* file) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, absl::MaxSplits(' ', 2));
  if (parts.size() != 3 || !absl::SimpleHexAtoi(parts[0], &file->crc32c) ||
      !absl::SimpleAtoi(parts[1], &file->bytes) || file->bytes < 0) {
    return false;
  }
  file->name = std::string(parts[2]);
  return !file->name.empty() && !absl::StrContains(file->name, '/') && file->name[0] != '.';
}

// DATA_LOSS: damaged. FAILED_PRECONDITION: of a newer version.
absl::StatusOr<BackupList> DecodeList(const std::string& path, absl::string_view text) {
  const size_t end = text.rfind("end ");
  if (end == absl::string_view::npos || text.substr(end) != EndLine(text.substr(0, end))) {
    return absl::DataLossError(absl::StrCat(path, " is damaged: its checksum does not fit"));
  }
  const std::vector<absl::string_view> lines =
      absl::StrSplit(text.substr(0, end), '\n', absl::SkipEmpty());
  if (lines.empty() || lines[0] != kListHead) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is a backup of another format: \"",
                                                      lines.empty() ? "" : lines[0].substr(0, 100),
                                                      "\""));
  }
  BackupList list;
  int store_format = 0;
  for (size_t i = 1; i < lines.size(); ++i) {
    const std::pair<absl::string_view, absl::string_view> line =
        absl::StrSplit(lines[i], absl::MaxSplits(' ', 1));
    const auto& [key, value] = line;
    int64_t created_us = 0;
    bool good = true;
    if (key == "id") good = absl::SimpleAtoi(value, &list.info.id);
    if (key == "version") list.info.version = std::string(value);
    if (key == "store_format") good = absl::SimpleAtoi(value, &store_format);
    if (key == "fingerprint") good = absl::SimpleHexAtoi(value, &list.info.fingerprint);
    if (key == "memories") good = absl::SimpleAtoi(value, &list.info.memories);
    if (key == "documents") good = absl::SimpleAtoi(value, &list.info.documents);
    if (key == "durable_bytes") good = absl::SimpleAtoi(value, &list.info.durable_bytes);
    if (key == "created_us") {
      good = absl::SimpleAtoi(value, &created_us);
      list.info.create_time = absl::FromUnixMicros(created_us);
    }
    if (key == "file") {
      BackupFile file;
      good = ParseFile(value, &file);
      list.info.bytes += file.bytes;
      list.files.push_back(std::move(file));
    }
    if (!good) return absl::DataLossError(absl::StrCat(path, ": line ", i + 1, " is no line"));
  }
  if (store_format < kOldestStoreFormat || store_format > kStoreFormat) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is of store format ", store_format,
                                                      "; this program reads formats ",
                                                      kOldestStoreFormat, " to ", kStoreFormat));
  }
  list.info.files = static_cast<int64_t>(list.files.size());
  return list;
}

absl::StatusOr<BackupList> ReadList(const std::string& path, int64_t id) {
  const std::string file = Path(Path(path, kBackupsFolder), absl::StrCat(id));
  absl::StatusOr<std::string> text = ReadWhole(file, kListBytesMax);
  if (absl::IsNotFound(text.status())) {
    return absl::NotFoundError(absl::StrCat("no backup ", id, " in ", path));
  }
  RETURN_IF_ERROR(text.status());
  ASSIGN_OR_RETURN(BackupList list, DecodeList(file, *text));
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

bool HasSize(const std::string& path, int64_t bytes) {
  std::error_code error;
  return static_cast<int64_t>(fs::file_size(path, error)) == bytes && !error;
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

}  // namespace

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
  const std::string folder = Path(path_, kFilesFolder);
  for (const StoreFile& file : files.files()) {
    BackupFile entry{file.name, file.bytes, file.crc32c.value_or(0)};
    if (file.crc32c.has_value() && HasSize(Path(folder, entry.SharedName()), file.bytes)) {
      progress.bytes_shared += file.bytes;
      RETURN_IF_ERROR(step(progress));
      list.files.push_back(std::move(entry));
      continue;
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
  RETURN_IF_ERROR(
      WriteFileDurably(Path(path_, kBackupsFolder), absl::StrCat(list.info.id), EncodeList(list)));
  CrashPoint("backup listed");
  ASSIGN_OR_RETURN(const BackupList written, ReadList(path_, list.info.id));
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

absl::StatusOr<BackupInfo> BackupDirectory::Restore(const std::string& path, int64_t id,
                                                    const std::string& data_dir,
                                                    const BackupStep& step) {
  RETURN_IF_ERROR(CheckFormat(path));
  if (id == 0) {
    ASSIGN_OR_RETURN(const std::vector<int64_t> ids, Ids(path));
    if (ids.empty()) return absl::NotFoundError(absl::StrCat("no backup in ", path));
    id = ids.back();
  }
  ASSIGN_OR_RETURN(const BackupList list, ReadList(path, id));
  RETURN_IF_ERROR(PrepareRestore(data_dir));
  const std::string aside = Path(data_dir, kRestoring);
  BackupProgress progress;
  progress.bytes_total = list.info.bytes;
  for (const BackupFile& file : list.files) {
    const std::string from = Path(Path(path, kFilesFolder), file.SharedName());
    absl::StatusOr<uint32_t> crc = absl::DataLossError(absl::StrCat(
        "backup ", id, " of ", path, " is damaged: ", from, " is missing or has another size"));
    if (HasSize(from, file.bytes)) {
      crc = CopyFile(from, file.bytes, Path(aside, file.name), [&](int64_t bytes) {
        progress.bytes_copied += bytes;
        return step(progress);
      });
    }
    RETURN_IF_ERROR(crc.status());
    if (*crc != file.crc32c) {
      return absl::DataLossError(absl::StrCat("backup ", id, " of ", path, " is damaged: ", from,
                                              " has crc ", *crc, ", recorded ", file.crc32c));
    }
  }
  RETURN_IF_ERROR(SyncFolder(aside));
  const std::string place = Path(data_dir, "rocksdb");
  if (rename(aside.c_str(), place.c_str()) != 0) return FileError(errno, "cannot write", place);
  RETURN_IF_ERROR(WriteFormatFile(data_dir));
  return list.info;
}

}  // namespace mneme
