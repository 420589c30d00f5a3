#include "memory_store/backup_list.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/crc32c.h"
#include "memory_store/data_directory.h"
#include "memory_store/table_name.h"

namespace mneme {
namespace {

constexpr char kListHead[] = "mneme backup 1";

std::string EndLine(absl::string_view text) {
  return absl::StrCat("end ", absl::Hex(Crc32c(text), absl::kZeroPad8), "\n");
}

// A file of a list. False: no such line, or a name that leads elsewhere.
bool ParseFile(absl::string_view text, BackupFile* file) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, absl::MaxSplits(' ', 2));
  if (parts.size() != 3 || !absl::SimpleHexAtoi(parts[0], &file->crc32c) ||
      !absl::SimpleAtoi(parts[1], &file->bytes) || file->bytes < 0) {
    return false;
  }
  file->name = std::string(parts[2]);
  // Told by lists of every version.
  file->is_derived = absl::EndsWith(file->name, ".blob");
  return !file->name.empty() && !absl::StrContains(file->name, '/') && file->name[0] != '.';
}

}  // namespace

std::string BackupFile::SharedName() const {
  return absl::StrCat(absl::Hex(crc32c, absl::kZeroPad8), "-", bytes, "-", name);
}

bool IsDerived(const StoreFile& file) {
  return file.table == Table::kSegments || file.table == Table::kPages;
}

std::string EncodeBackupList(const BackupList& list) {
  const BackupInfo& info = list.info;
  std::string text = absl::StrCat(
      kListHead, "\nid ", info.id, "\ncreated_us ", absl::ToUnixMicros(info.create_time),
      "\nversion ", info.version, info.store.empty() ? "" : absl::StrCat("\nstore ", info.store),
      "\nstore_format ", kStoreFormat, "\nfingerprint ",
      absl::Hex(info.fingerprint, absl::kZeroPad16), "\nmemories ", info.memories, "\ndocuments ",
      info.documents, "\ndurable_bytes ", info.durable_bytes, "\n");
  for (const BackupFile& file : list.files) {
    absl::StrAppend(&text, "file ", absl::Hex(file.crc32c, absl::kZeroPad8), " ", file.bytes, " ",
                    file.name, "\n");
    // A line of its own, which programs that do not know it pass over.
    if (file.is_derived) absl::StrAppend(&text, "derived ", file.name, "\n");
  }
  absl::StrAppend(&text, EndLine(text));
  return text;
}

absl::StatusOr<BackupList> DecodeBackupList(const std::string& path, absl::string_view text) {
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
    if (key == "store") list.info.store = std::string(value);
    if (key == "derived" && !list.files.empty() && list.files.back().name == value) {
      list.files.back().is_derived = true;
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

}  // namespace mneme
