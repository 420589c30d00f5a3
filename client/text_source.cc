#include "client/text_source.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace mneme {
namespace {

absl::Status SystemError(int error, absl::string_view what) {
  std::string message = absl::StrCat(what, ": ", strerror(error));
  if (error == ENOENT) return absl::NotFoundError(message);
  if (error == EACCES || error == EPERM) return absl::PermissionDeniedError(message);
  return absl::UnknownError(message);
}

}  // namespace

absl::StatusOr<std::string> StringSource::Read(int64_t offset, int64_t bytes_max) {
  return std::string(text_.substr(static_cast<size_t>(offset), static_cast<size_t>(bytes_max)));
}

absl::StatusOr<std::unique_ptr<FileSource>> FileSource::Open(const std::string& path) {
  // Without O_NONBLOCK, opening a named pipe would wait for its other end before we can refuse it.
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return SystemError(errno, path);
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    return absl::FailedPreconditionError(absl::StrCat(path, ": not a regular file"));
  }
  return std::unique_ptr<FileSource>(new FileSource(path, fd, info.st_size));
}

FileSource::~FileSource() { close(fd_); }

absl::StatusOr<std::string> FileSource::Read(int64_t offset, int64_t bytes_max) {
  std::string bytes(static_cast<size_t>(bytes_max), '\0');
  size_t have = 0;
  while (have < bytes.size()) {
    ssize_t n =
        pread(fd_, bytes.data() + have, bytes.size() - have, offset + static_cast<int64_t>(have));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return SystemError(errno, absl::StrCat(path_, " at byte ", offset));
    if (n == 0) break;
    have += static_cast<size_t>(n);
  }
  bytes.resize(have);
  return bytes;
}

absl::StatusOr<std::string> PipeSource::Read(int64_t offset, int64_t bytes_max) {
  const size_t skip = static_cast<size_t>(offset - kept_offset_);
  if (skip < kept_.size()) return kept_.substr(skip, static_cast<size_t>(bytes_max));
  if (ended_) return std::string();
  std::string bytes(static_cast<size_t>(bytes_max), '\0');
  while (true) {
    if (absl::Now() >= deadline_)
      return absl::DeadlineExceededError("deadline passed while waiting for standard input");
    if (cancellation_ != nullptr && cancellation_->cancelled())
      return absl::CancelledError("cancelled");
    // A short wait, so that a cancellation is noticed while the other end is silent.
    struct pollfd ready = {fd_, POLLIN, 0};
    int polled = poll(&ready, 1, /*timeout ms=*/100);
    if (polled == 0 || (polled < 0 && errno == EINTR)) continue;
    ssize_t n = read(fd_, bytes.data(), bytes.size());
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n < 0) return SystemError(errno, "standard input");
    ended_ = n == 0;
    bytes.resize(static_cast<size_t>(n));
    kept_ += bytes;
    return bytes;
  }
}

void PipeSource::Release(int64_t offset) {
  const int64_t drop = std::min<int64_t>(offset - kept_offset_, static_cast<int64_t>(kept_.size()));
  // Erasing copies what stays: do it only when at least half goes.
  if (drop <= 0 || 2 * drop < static_cast<int64_t>(kept_.size())) return;
  kept_.erase(0, static_cast<size_t>(drop));
  kept_offset_ += drop;
}

}  // namespace mneme
