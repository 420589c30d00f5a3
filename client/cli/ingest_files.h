// Which files an ingest takes, and the document id of each.

#ifndef MNEME_CLIENT_CLI_INGEST_FILES_H_
#define MNEME_CLIENT_CLI_INGEST_FILES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme {

struct IngestFile {
  std::string path;
  // Document id.
  std::string document;
  int64_t bytes = 0;
};

struct IngestFiles {
  // Sorted by path.
  std::vector<IngestFile> files;
  // Left out: empty files; entries whose name begins with a dot (a hidden folder counts once); all
  // that is neither a regular file nor a folder (symbolic links are not followed).
  int64_t empty = 0;
  int64_t hidden = 0;
  int64_t special = 0;
  // Folders and files that could not be read.
  std::vector<absl::Status> errors;
};

// An allowed id for a file, always the same for the same relative path: "/" becomes "~", every
// other character that an id may not have "_"; "doc" goes before a first character that may not be
// first; a result beyond 128 bytes is cut and ends in a checksum of the path.
std::string DocumentIdForPath(absl::string_view relative_path);

// All regular files below a folder. ALREADY_EXISTS, naming both, when two paths get one id.
absl::StatusOr<IngestFiles> CollectFiles(const std::string& folder, bool take_hidden);

// Offset of the first byte of a file that is not UTF-8; nullopt when all of it is. The system's
// error when it cannot be read.
absl::StatusOr<std::optional<int64_t>> FirstInvalidUtf8(const std::string& path);

}  // namespace mneme

#endif  // MNEME_CLIENT_CLI_INGEST_FILES_H_
