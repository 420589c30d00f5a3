#include "memory_store/rocksdb/close_record.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/crc32c.h"
#include "common/status_macros.h"
#include "memory_store/store_files.h"

namespace mneme {
namespace {

constexpr char kCloseFile[] = "CLOSED";
constexpr char kHead[] = "mneme closed 1\n";
constexpr int64_t kCloseFileBytesMax = int64_t{1} << 20;

absl::Status NoStep(int64_t) { return absl::OkStatus(); }

// Whole of a file of at most kCloseFileBytesMax bytes.
absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::error_code error;
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path, error));
  if (error) return FileError(error.value(), "cannot read", path);
  std::string contents;
  RETURN_IF_ERROR(
      ReadFilePieces(path, std::min(bytes, kCloseFileBytesMax), [&](absl::string_view piece) {
        contents.append(piece.data(), piece.size());
        return absl::OkStatus();
      }));
  return contents;
}

// Of the files that a record is about, by name.
absl::StatusOr<std::vector<std::string>> RecordedFiles(const std::string& folder) {
  // CURRENT names the one MANIFEST that counts.
  ASSIGN_OR_RETURN(const std::string current, ReadFile(absl::StrCat(folder, "/CURRENT")));
  std::vector<std::string> names = {"CURRENT", std::string(absl::StripSuffix(current, "\n"))};
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename();
    if (absl::EndsWith(name, ".log")) names.push_back(name);
  }
  if (error) return FileError(error.value(), "cannot list", folder);
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<std::string> DescribeFile(const std::string& folder, const std::string& name) {
  const std::string path = absl::StrCat(folder, "/", name);
  std::error_code error;
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path, error));
  if (error) return FileError(error.value(), "cannot read", path);
  ASSIGN_OR_RETURN(const uint32_t crc, FileCrc32c(path, bytes, NoStep));
  return absl::StrCat(absl::Hex(crc, absl::kZeroPad8), " ", bytes, " ", name, "\n");
}

absl::Status Remove(const std::string& folder) {
  const std::string path = absl::StrCat(folder, "/", kCloseFile);
  if (unlink(path.c_str()) != 0) return FileError(errno, "cannot remove", path);
  return SyncFolder(folder);
}

std::string EndLine(absl::string_view text) {
  return absl::StrCat("end ", absl::Hex(Crc32c(text), absl::kZeroPad8), "\n");
}

}  // namespace

absl::Status WriteCloseRecord(const std::string& data_dir) {
  const std::string folder = absl::StrCat(data_dir, "/rocksdb");
  ASSIGN_OR_RETURN(const std::vector<std::string> names, RecordedFiles(folder));
  std::string text = kHead;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(const std::string line, DescribeFile(folder, name));
    absl::StrAppend(&text, line);
  }
  absl::StrAppend(&text, EndLine(text));
  return WriteFileDurably(folder, kCloseFile, text);
}

absl::StatusOr<std::vector<std::string>> CheckCloseRecord(const std::string& data_dir) {
  const std::string folder = absl::StrCat(data_dir, "/rocksdb");
  const std::string path = absl::StrCat(folder, "/", kCloseFile);
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (absl::IsNotFound(text.status())) return std::vector<std::string>();
  RETURN_IF_ERROR(text.status());
  const size_t end = text->rfind("end ");
  if (!absl::StartsWith(*text, kHead) || end == std::string::npos ||
      text->substr(end) != EndLine(absl::string_view(*text).substr(0, end))) {
    // Of the files themselves that says nothing.
    return std::vector<std::string>{kCloseFile};
  }
  std::vector<std::string> damaged;
  for (absl::string_view line : absl::StrSplit(
           text->substr(sizeof(kHead) - 1, end - (sizeof(kHead) - 1)), '\n', absl::SkipEmpty())) {
    const std::vector<std::string> parts = absl::StrSplit(line, ' ');
    if (parts.size() != 3) return absl::DataLossError(absl::StrCat(path, ": a line is no line"));
    const absl::StatusOr<std::string> now = DescribeFile(folder, parts[2]);
    if (now.ok() && absl::StripSuffix(*now, "\n") == line) continue;
    if (!absl::EndsWith(parts[2], ".log")) {
      return absl::DataLossError(
          absl::StrCat(folder, "/", parts[2], " is not what it was when the store was closed"));
    }
    damaged.push_back(parts[2]);
  }
  return damaged;
}

absl::StatusOr<std::vector<std::string>> TakeCloseRecord(const std::string& data_dir) {
  ASSIGN_OR_RETURN(std::vector<std::string> damaged, CheckCloseRecord(data_dir));
  const std::string folder = absl::StrCat(data_dir, "/rocksdb");
  std::error_code error;
  if (std::filesystem::exists(absl::StrCat(folder, "/", kCloseFile), error)) {
    RETURN_IF_ERROR(Remove(folder));
  }
  return damaged;
}

}  // namespace mneme
