#include "client/cli/ingest_files.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/utf8_scanner.h"
#include "client/text_source.h"
#include "common/crc32c.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

namespace fs = std::filesystem;

constexpr size_t kIdBytesMax = 128;
constexpr int64_t kReadBytes = int64_t{1} << 20;

bool IdMayHold(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '~' ||
         c == '-';
}

absl::Status FileError(const fs::path& path, const std::error_code& error) {
  return absl::UnknownError(absl::StrCat(path.string(), ": ", error.message()));
}

// Depth first; the order does not matter, CollectFiles sorts.
void Collect(const fs::path& root, const fs::path& folder, bool take_hidden, IngestFiles* result) {
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    const fs::path& path = entry->path();
    if (!take_hidden && path.filename().string().front() == '.') {
      ++result->hidden;
      continue;
    }
    std::error_code failed;
    const fs::file_status status = entry->symlink_status(failed);
    if (fs::is_directory(status)) {
      Collect(root, path, take_hidden, result);
    } else if (fs::is_regular_file(status)) {
      const auto bytes = static_cast<int64_t>(entry->file_size(failed));
      if (failed) {
        result->errors.push_back(FileError(path, failed));
      } else if (bytes == 0) {
        ++result->empty;
      } else {
        result->files.push_back(
            {path.string(), DocumentIdForPath(path.lexically_relative(root).string()), bytes});
      }
    } else {
      ++result->special;
    }
  }
  if (error) result->errors.push_back(FileError(folder, error));
}

}  // namespace

std::string DocumentIdForPath(absl::string_view relative_path) {
  std::string id;
  for (char c : relative_path) {
    // One character beyond ASCII is several bytes: its first stands for all of them.
    if ((c & 0xc0) == 0x80) continue;
    id += c == '/' ? '~' : IdMayHold(c) ? c : '_';
  }
  if (id.empty() || !absl::ascii_isalnum(static_cast<unsigned char>(id.front())))
    id.insert(0, "doc");
  if (id.size() > kIdBytesMax) {
    const std::string checksum = absl::StrFormat("~%08x", Crc32c(relative_path));
    id = id.substr(0, kIdBytesMax - checksum.size()) + checksum;
  }
  return id;
}

absl::StatusOr<IngestFiles> CollectFiles(const std::string& folder, bool take_hidden) {
  IngestFiles result;
  Collect(folder, folder, take_hidden, &result);
  std::sort(result.files.begin(), result.files.end(),
            [](const IngestFile& a, const IngestFile& b) { return a.path < b.path; });
  std::map<std::string, std::string> paths;
  for (const IngestFile& file : result.files) {
    auto [other, added] = paths.emplace(file.document, file.path);
    if (!added) {
      return absl::AlreadyExistsError(
          absl::StrCat(other->second, " and ", file.path, " would both become document ",
                       file.document, "; rename one, or ingest them one by one with --document"));
    }
  }
  return result;
}

absl::StatusOr<std::optional<int64_t>> FirstInvalidUtf8(const std::string& path) {
  ASSIGN_OR_RETURN(auto source, FileSource::Open(path));
  Utf8Scanner scanner;
  while (true) {
    ASSIGN_OR_RETURN(std::string bytes, source->Read(scanner.bytes_seen(), kReadBytes));
    if (bytes.empty()) return scanner.InvalidAtEnd();
    if (auto invalid = scanner.Scan(bytes)) return invalid;
  }
}

}  // namespace mneme
