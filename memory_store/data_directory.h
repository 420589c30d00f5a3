// The directory that holds one store: whose it is (a FORMAT file), who uses it now (a locked LOCK
// file), and how much room its file system has. Layout: docs/storage_format.md, "Directory".

#ifndef MNEME_MEMORY_STORE_DATA_DIRECTORY_H_
#define MNEME_MEMORY_STORE_DATA_DIRECTORY_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace mneme {

inline constexpr int kStoreFormat = 2;
// Still read. Format 1 knew no forks: a program of that time would show what they alone hold.
inline constexpr int kOldestStoreFormat = 1;

// Makes a folder a data directory: writes its FORMAT file, whole or not at all. Errors as
// FileError.
absl::Status WriteFormatFile(const std::string& directory);

// Holds the lock until it goes. Thread-safe.
class DataDirectory {
 public:
  // Creates the directory (not its parents) and its FORMAT file when there is none.
  // FAILED_PRECONDITION: locked by another server, of another format, or holding something else;
  // PERMISSION_DENIED: not writable; NOT_FOUND: its parent is missing; RESOURCE_EXHAUSTED: no
  // space. Messages name the path.
  static absl::StatusOr<std::unique_ptr<DataDirectory>> Open(const std::string& path);
  // NOT_FOUND when `path` is no data directory; changes nothing.
  static absl::Status CheckExists(const std::string& path);
  ~DataDirectory();
  DataDirectory(const DataDirectory&) = delete;
  DataDirectory& operator=(const DataDirectory&) = delete;

  // Says, before the first record that an older program does not know is written, that this one
  // writes here. Errors as FileError.
  absl::Status TakeOver() const;

  const std::string& path() const { return path_; }
  // Free to this process, on the directory's file system; -1 when it cannot be told.
  int64_t free_bytes() const;
  // Of all files below.
  int64_t used_bytes() const;

 private:
  DataDirectory(std::string path, int lock_fd) : path_(std::move(path)), lock_fd_(lock_fd) {}

  const std::string path_;
  const int lock_fd_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_DATA_DIRECTORY_H_
