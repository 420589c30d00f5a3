// The files below a chunk store, as its checks and its backups see them: names, sizes and the
// checksums that were recorded when the files were written.

#ifndef MNEME_MEMORY_STORE_STORE_FILES_H_
#define MNEME_MEMORY_STORE_STORE_FILES_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme {

enum class Table : uint8_t;

struct StoreFile {
  enum class Kind : uint8_t {
    kTable,  // records; never changes
    kBlobs,  // large values of records; never changes
    kOther,  // the store's log and what it knows of its files
  };
  Kind kind = Kind::kOther;
  std::string name;  // below the store's directory
  std::string path;
  int64_t bytes = 0;  // what counts of it; the file may have grown since
  // Of those bytes, as recorded when they were written; nothing: not recorded.
  std::optional<uint32_t> crc32c;
  // When not empty: these bytes stand for the file's.
  std::string contents;
  // Of kTable and kBlobs; nothing: a table that nobody reads.
  std::optional<Table> table;
  // Of kOther, when not empty: what was wrong with it when the store was opened. Unless the store
  // is open for reading alone, the file has gone since, what could be read of it being in others.
  std::string damage;
};

// The files of a store at one moment. None of them goes away before this does. Move-only;
// thread-compatible. Must not outlive the store.
class StoreFiles {
 public:
  StoreFiles() = default;
  // `release`: called once, when the files need not stay any more.
  StoreFiles(std::vector<StoreFile> files, absl::AnyInvocable<void()> release)
      : files_(std::move(files)), release_(std::move(release)) {}
  ~StoreFiles() {
    if (release_) release_();
  }
  StoreFiles(StoreFiles&& other) noexcept
      : files_(std::move(other.files_)), release_(std::exchange(other.release_, nullptr)) {}
  StoreFiles& operator=(StoreFiles&&) = delete;

  const std::vector<StoreFile>& files() const { return files_; }

 private:
  std::vector<StoreFile> files_;
  absl::AnyInvocable<void()> release_;
};

// What errno says, with the path: PERMISSION_DENIED, NOT_FOUND, FAILED_PRECONDITION (not a folder,
// or there already), RESOURCE_EXHAUSTED (a full disk), INTERNAL.
absl::Status FileError(int error, absl::string_view what, const std::string& path);
// Makes the names in a folder durable.
absl::Status SyncFolder(const std::string& path);
// Writes FOLDER/NAME.new, syncs it and renames it to FOLDER/NAME: whole or absent, whatever
// happens. Errors as FileError.
absl::Status WriteFileDurably(const std::string& folder, const std::string& name,
                              absl::string_view contents);

// Reads the first `bytes` bytes of a file in pieces of at most 1 MiB; an error of `take` ends it
// and is returned. NOT_FOUND: no such file; DATA_LOSS: it is shorter, or the disk cannot read it.
absl::Status ReadFilePieces(const std::string& path, int64_t bytes,
                            const std::function<absl::Status(absl::string_view)>& take);

// Reads all of a file and returns the crc32c of its bytes; `step` is told after each piece how long
// it was. Errors as ReadFilePieces.
absl::StatusOr<uint32_t> FileCrc32c(const std::string& path, int64_t bytes,
                                    const std::function<absl::Status(int64_t)>& step);

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_STORE_FILES_H_
