#include "memory_store/store_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/crc32c.h"
#include "common/status_facts.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

constexpr int64_t kPieceBytes = int64_t{1} << 20;

}  // namespace

absl::Status FileError(int error, absl::string_view what, const std::string& path) {
  const std::string message = absl::StrCat(what, " ", path, ": ", std::strerror(error));
  switch (error) {
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOENT:
      return absl::NotFoundError(message);
    case ENOTDIR:
    case EEXIST:
      return absl::FailedPreconditionError(message);
    case ENOSPC:
    case EDQUOT:
      return WithStorageFull(absl::ResourceExhaustedError(message));
    default:
      return absl::InternalError(message);
  }
}

absl::Status SyncFolder(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return FileError(errno, "cannot open", path);
  const int result = fsync(fd);
  const int error = errno;
  close(fd);
  return result == 0 ? absl::OkStatus() : FileError(error, "cannot sync", path);
}

absl::Status WriteFileDurably(const std::string& folder, const std::string& name,
                              absl::string_view contents) {
  const std::string path = absl::StrCat(folder, "/", name);
  const std::string aside = absl::StrCat(path, ".new");
  const int fd = open(aside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return FileError(errno, "cannot write", aside);
  errno = ENOSPC;  // what a short write means
  const bool written =
      write(fd, contents.data(), contents.size()) == static_cast<ssize_t>(contents.size()) &&
      fsync(fd) == 0;
  const int error = errno;
  close(fd);
  if (!written) return FileError(error, "cannot write", aside);
  if (rename(aside.c_str(), path.c_str()) != 0) return FileError(errno, "cannot write", path);
  return SyncFolder(folder);
}

absl::Status ReadFilePieces(const std::string& path, int64_t bytes,
                            const std::function<absl::Status(absl::string_view)>& take) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return FileError(errno, "cannot read", path);
  const absl::Cleanup close_file = [fd] { close(fd); };
  const auto buffer = std::make_unique<char[]>(kPieceBytes);
  for (int64_t at = 0; at < bytes;) {
    const ssize_t count =
        pread(fd, buffer.get(), static_cast<size_t>(std::min(kPieceBytes, bytes - at)), at);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      return absl::DataLossError(
          absl::StrCat("cannot read ", path, " at byte ", at, ": ", std::strerror(errno)));
    }
    if (count == 0) {
      return absl::DataLossError(
          absl::StrCat(path, " ends at byte ", at, "; it should have ", bytes));
    }
    RETURN_IF_ERROR(take({buffer.get(), static_cast<size_t>(count)}));
    at += count;
  }
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> FileCrc32c(const std::string& path, int64_t bytes,
                                    const std::function<absl::Status(int64_t)>& step) {
  uint32_t crc = 0;
  RETURN_IF_ERROR(ReadFilePieces(path, bytes, [&](absl::string_view piece) {
    crc = Crc32c(piece, crc);
    return step(static_cast<int64_t>(piece.size()));
  }));
  return crc;
}

}  // namespace mneme
