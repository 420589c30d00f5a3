#include "memory_store/data_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "memory_store/store_files.h"

namespace mneme {
namespace {

constexpr char kFormatFile[] = "FORMAT";
constexpr char kFormatFileBeingWritten[] = "FORMAT.new";
constexpr char kLockFile[] = "LOCK";
constexpr char kFormatPrefix[] = "mneme store ";

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return FileError(errno, "cannot read", path);
  char buffer[256];
  const ssize_t count = read(fd, buffer, sizeof(buffer));
  const int error = errno;
  close(fd);
  if (count < 0) return FileError(error, "cannot read", path);
  return std::string(buffer, static_cast<size_t>(count));
}

absl::Status CheckFormat(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kFormatFile);
  absl::StatusOr<std::string> text = ReadSmallFile(path);
  if (absl::IsNotFound(text.status())) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
      const std::string name = entry.path().filename();
      if (name == kLockFile || name == kFormatFileBeingWritten || name == "lost+found") continue;
      return absl::FailedPreconditionError(
          absl::StrCat(directory, " is not a Mneme data directory: it holds \"", name, "\" and no ",
                       kFormatFile, " file"));
    }
    if (error) return FileError(error.value(), "cannot list", directory);
    return WriteFormatFile(directory);
  }
  RETURN_IF_ERROR(text.status());
  absl::string_view version_text = *text;
  int version;
  if (!absl::ConsumePrefix(&version_text, kFormatPrefix) ||
      !absl::ConsumeSuffix(&version_text, "\n") || !absl::SimpleAtoi(version_text, &version)) {
    return absl::FailedPreconditionError(
        absl::StrCat(directory, " is not a Mneme data directory: ", path, " does not say so"));
  }
  if (version < kOldestStoreFormat || version > kStoreFormat) {
    return absl::FailedPreconditionError(
        absl::StrCat(directory, " has store format ", version, "; this program reads formats ",
                     kOldestStoreFormat, " to ", kStoreFormat,
                     version > kStoreFormat ? ": use a newer program" : ""));
  }
  return absl::OkStatus();
}

absl::StatusOr<int> LockDirectory(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kLockFile);
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return FileError(errno, "cannot write", path);
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    close(fd);
    if (error != EWOULDBLOCK) return FileError(error, "cannot lock", path);
    const std::string holder = ReadSmallFile(path).value_or("");
    return absl::FailedPreconditionError(absl::StrCat(
        directory, " is in use by another server",
        holder.empty() ? "" : absl::StrCat(" (process ", absl::StripSuffix(holder, "\n"), ")")));
  }
  // For people only: who holds the lock. The lock itself is the flock.
  const std::string pid = absl::StrCat(getpid(), "\n");
  if (ftruncate(fd, 0) != 0 || pwrite(fd, pid.data(), pid.size(), 0) < 0) {
    const int error = errno;
    close(fd);
    return FileError(error, "cannot write", path);
  }
  return fd;
}

}  // namespace

absl::Status WriteFormatFile(const std::string& directory) {
  return WriteFileDurably(directory, kFormatFile, absl::StrCat(kFormatPrefix, kStoreFormat, "\n"));
}

absl::StatusOr<std::unique_ptr<DataDirectory>> DataDirectory::Open(const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError("the data directory's path is empty");
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return FileError(errno, "cannot create", path);
  }
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return FileError(errno, "cannot use", path);
  if (!S_ISDIR(info.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is not a directory"));
  }
  if (faccessat(AT_FDCWD, path.c_str(), R_OK | W_OK | X_OK, AT_EACCESS) != 0) {
    return FileError(errno, "cannot use", path);
  }
  ASSIGN_OR_RETURN(const int lock_fd, LockDirectory(path));
  // From here on the destructor gives the lock back.
  std::unique_ptr<DataDirectory> directory(new DataDirectory(path, lock_fd));
  RETURN_IF_ERROR(CheckFormat(path));
  return directory;
}

absl::Status DataDirectory::TakeOver() const {
  const std::string path = absl::StrCat(path_, "/", kFormatFile);
  ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path));
  if (text == absl::StrCat(kFormatPrefix, kStoreFormat, "\n")) return absl::OkStatus();
  return WriteFormatFile(path_);
}

absl::Status DataDirectory::CheckExists(const std::string& path) {
  const std::string format = absl::StrCat(path, "/", kFormatFile);
  if (access(format.c_str(), F_OK) == 0) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat(path, " is not a Mneme data directory: it has no ", kFormatFile, " file"));
}

DataDirectory::~DataDirectory() { close(lock_fd_); }

int64_t DataDirectory::free_bytes() const {
  struct statvfs info;
  if (statvfs(path_.c_str(), &info) != 0) return -1;
  return static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
}

int64_t DataDirectory::used_bytes() const {
  int64_t bytes = 0;
  std::error_code error;
  std::filesystem::recursive_directory_iterator it(path_, error), end;
  for (; !error && it != end; it.increment(error)) {
    std::error_code file_error;  // a file that went away meanwhile counts as nothing
    const auto file_bytes = it->file_size(file_error);
    if (!file_error) bytes += static_cast<int64_t>(file_bytes);
  }
  return bytes;
}

}  // namespace mneme
