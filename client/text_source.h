// TextSource: where an ingest takes its bytes from, at any offset not yet released, so that a
// broken stream can be taken up again. A file is read again from disk; a pipe keeps what the server
// has not yet made durable.

#ifndef MNEME_CLIENT_TEXT_SOURCE_H_
#define MNEME_CLIENT_TEXT_SOURCE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/cancellation.h"

namespace mneme {

// Thread-compatible: one ingest uses it at a time.
class TextSource {
 public:
  virtual ~TextSource() = default;
  // At most `bytes_max` bytes from `offset`, empty at the end. `offset` is at most the end of what
  // was read so far and at least first_offset().
  virtual absl::StatusOr<std::string> Read(int64_t offset, int64_t bytes_max) = 0;
  // Bytes before `offset` will not be asked for again.
  virtual void Release(int64_t offset) = 0;
  // The earliest offset that Read still takes.
  virtual int64_t first_offset() const = 0;
  // Size in bytes where it is known beforehand.
  virtual std::optional<int64_t> size() const = 0;
};

// Text in memory, which must outlive the source.
class StringSource : public TextSource {
 public:
  explicit StringSource(absl::string_view text) : text_(text) {}
  absl::StatusOr<std::string> Read(int64_t offset, int64_t bytes_max) override;
  void Release(int64_t) override {}
  int64_t first_offset() const override { return 0; }
  std::optional<int64_t> size() const override { return static_cast<int64_t>(text_.size()); }

 private:
  const absl::string_view text_;
};

// A regular file, open as long as the source lives.
class FileSource : public TextSource {
 public:
  // NOT_FOUND, PERMISSION_DENIED, FAILED_PRECONDITION (not a regular file), or UNKNOWN with the
  // system's words.
  static absl::StatusOr<std::unique_ptr<FileSource>> Open(const std::string& path);
  ~FileSource() override;
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;
  absl::StatusOr<std::string> Read(int64_t offset, int64_t bytes_max) override;
  void Release(int64_t) override {}
  int64_t first_offset() const override { return 0; }
  std::optional<int64_t> size() const override { return size_; }

 private:
  FileSource(std::string path, int fd, int64_t size)
      : path_(std::move(path)), fd_(fd), size_(size) {}
  const std::string path_;
  const int fd_;
  const int64_t size_;
};

// A pipe or terminal, read once. Keeps the bytes between Release() and the furthest Read(): the
// ingest's window bounds them (to twice its size).
class PipeSource : public TextSource {
 public:
  // Borrows `fd`. `cancellation` (may be null) ends a Read that waits for the other end with
  // CANCELLED, `deadline` ends it with DEADLINE_EXCEEDED.
  PipeSource(int fd, const Cancellation* cancellation, absl::Time deadline)
      : fd_(fd), cancellation_(cancellation), deadline_(deadline) {}
  absl::StatusOr<std::string> Read(int64_t offset, int64_t bytes_max) override;
  void Release(int64_t offset) override;
  int64_t first_offset() const override { return kept_offset_; }
  std::optional<int64_t> size() const override { return std::nullopt; }

 private:
  const int fd_;
  const Cancellation* const cancellation_;
  const absl::Time deadline_;
  bool ended_ = false;
  // Bytes [kept_offset_, kept_offset_ + kept_.size()).
  std::string kept_;
  int64_t kept_offset_ = 0;
};

}  // namespace mneme

#endif  // MNEME_CLIENT_TEXT_SOURCE_H_
