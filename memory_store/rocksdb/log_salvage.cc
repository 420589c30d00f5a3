#include "memory_store/rocksdb/log_salvage.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "memory_store/record_coding.h"
#include "memory_store/store_files.h"

namespace mneme {
namespace {

constexpr size_t kBlockBytes = 32768;
constexpr size_t kHeaderBytes = 7;  // crc u32, length u16, type u8

enum Type : uint8_t { kZero = 0, kFull = 1, kFirst = 2, kMiddle = 3, kLast = 4 };

// As RocksDB stores a crc, so that the crc of bytes that hold a crc is none of a kind.
uint32_t Masked(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; }

uint32_t CrcOf(uint8_t type, absl::string_view payload) {
  const char byte = static_cast<char>(type);
  return Masked(Crc32c(payload, Crc32c({&byte, 1})));
}

struct Header {
  uint32_t crc = 0;
  size_t length = 0;
  uint8_t type = 0;
};

Header ReadHeader(absl::string_view bytes) {
  const auto byte = [bytes](size_t i) {
    return static_cast<uint32_t>(static_cast<uint8_t>(bytes[i]));
  };
  return {byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24, byte(4) | byte(5) << 8,
          static_cast<uint8_t>(byte(6))};
}

void AppendFragment(uint8_t type, absl::string_view payload, std::string* log) {
  PutU32(log, CrcOf(type, payload));
  PutU8(log, static_cast<uint8_t>(payload.size()));
  PutU8(log, static_cast<uint8_t>(payload.size() >> 8));
  PutU8(log, type);
  log->append(payload.data(), payload.size());
}

void AppendRecord(absl::string_view record, std::string* log) {
  bool first = true;
  do {
    size_t left = kBlockBytes - log->size() % kBlockBytes;
    if (left < kHeaderBytes) {
      log->append(left, '\0');
      left = kBlockBytes;
    }
    const absl::string_view fragment = record.substr(0, left - kHeaderBytes);
    record.remove_prefix(fragment.size());
    const bool last = record.empty();
    AppendFragment(first ? (last ? kFull : kFirst) : (last ? kLast : kMiddle), fragment, log);
    first = false;
  } while (!record.empty());
}

}  // namespace

LogSalvage SalvageLog(absl::string_view log) {
  LogSalvage result;
  std::string good;    // the log of the good records
  std::string record;  // whose fragments are being gathered
  bool gathering = false;
  size_t good_end = 0;     // of what is good, up to here, or was counted as damaged
  size_t whole_begin = 0;  // where the record being gathered began
  const auto take = [&](absl::string_view whole, size_t begin, size_t end) {
    // Padding at the end of a block is no damage.
    if (begin > good_end && begin - good_end >= kHeaderBytes) {
      result.damaged_bytes += static_cast<int64_t>(begin - good_end);
    }
    AppendRecord(whole, &good);
    ++result.records;
    good_end = end;
  };
  for (size_t at = 0; at < log.size();) {
    const size_t block_end = std::min(log.size(), at - at % kBlockBytes + kBlockBytes);
    if (block_end - at < kHeaderBytes) {
      at = block_end;
      continue;
    }
    const Header header = ReadHeader(log.substr(at));
    const size_t end = at + kHeaderBytes + header.length;
    const bool sound =
        end <= block_end && header.type >= kFull && header.type <= kLast &&
        CrcOf(header.type, log.substr(at + kHeaderBytes, header.length)) == header.crc;
    if (!sound) {
      // Its length may be right: what it leads to has a checksum too.
      gathering = false;
      at = end < block_end && header.length > 0 ? end : block_end;
      continue;
    }
    const absl::string_view payload = log.substr(at + kHeaderBytes, header.length);
    if (header.type == kFull || header.type == kFirst) {
      record.clear();
      whole_begin = at;
    }
    gathering = header.type == kFull || header.type == kFirst || gathering;
    if (gathering) record.append(payload.data(), payload.size());
    if (gathering && (header.type == kFull || header.type == kLast)) {
      take(record, whole_begin, end);
      gathering = false;
    }
    at = end;
  }
  if (result.damaged_bytes > 0) result.log = std::move(good);
  return result;
}

absl::StatusOr<std::vector<SalvagedLog>> SalvageLogs(const std::string& folder, bool write) {
  std::vector<SalvagedLog> salvaged;
  std::error_code error;
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename();
    if (absl::EndsWith(name, ".log")) names.push_back(name);
  }
  if (error) return FileError(error.value(), "cannot list", folder);
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(folder, "/", name);
    const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path, error));
    if (error) return FileError(error.value(), "cannot read", path);
    std::string log;
    log.reserve(static_cast<size_t>(bytes));
    RETURN_IF_ERROR(ReadFilePieces(path, bytes, [&](absl::string_view piece) {
      log.append(piece.data(), piece.size());
      return absl::OkStatus();
    }));
    const LogSalvage salvage = SalvageLog(log);
    if (salvage.damaged_bytes == 0) continue;
    LogError("memory_store", "stored data is damaged: damaged records of the log are left out",
             {{"path", path},
              {"bytes", absl::StrCat(salvage.damaged_bytes)},
              {"good_records", absl::StrCat(salvage.records)}});
    if (write) RETURN_IF_ERROR(WriteFileDurably(folder, name, salvage.log));
    salvaged.push_back({name, salvage.damaged_bytes});
  }
  return salvaged;
}

}  // namespace mneme
