#include "memory_store/rocksdb/blob_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "memory_store/record_coding.h"

namespace mneme {
namespace {

constexpr uint32_t kMagic = 2395959;
constexpr uint32_t kVersion = 1;
constexpr int64_t kHeaderBytes = 30;
constexpr int64_t kFooterBytes = 32;
// Key length, value length, expiration (u64 each), crc of these, crc of key and value.
constexpr int64_t kRecordHeaderBytes = 32;
// Read at one go with the record's head: no key of ours is longer.
constexpr int64_t kKeyBytesMax = 64;

absl::Status Damaged(const std::string& path, int64_t offset, absl::string_view what) {
  return absl::DataLossError(absl::StrCat("blob file ", path, " at byte ", offset, ": ", what));
}

}  // namespace

std::string BlobFileName(uint64_t number) {
  return absl::StrCat(absl::Dec(number, absl::kZeroPad6), ".blob");
}

absl::Status ReadBlobFileKeys(const std::string& path,
                              const std::function<void(absl::string_view key)>& visit) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const std::string what = absl::StrCat("cannot open ", path, ": ", std::strerror(errno));
    return errno == ENOENT ? absl::NotFoundError(what) : absl::InternalError(what);
  }
  const absl::Cleanup close_fd = [fd] { close(fd); };
  struct stat info;
  if (fstat(fd, &info) != 0) {
    return absl::InternalError(absl::StrCat("cannot read ", path, ": ", std::strerror(errno)));
  }
  const int64_t end = static_cast<int64_t>(info.st_size) - kFooterBytes;

  std::array<char, kRecordHeaderBytes + kKeyBytesMax> buffer;
  // What lies at `offset`, as much as the buffer and the file hold.
  const auto read_at = [&](int64_t offset) -> absl::StatusOr<absl::string_view> {
    const ssize_t count = pread(fd, buffer.data(), buffer.size(), offset);
    if (count < 0) {
      return absl::InternalError(absl::StrCat("cannot read ", path, ": ", std::strerror(errno)));
    }
    return absl::string_view(buffer.data(), static_cast<size_t>(count));
  };

  ASSIGN_OR_RETURN(const absl::string_view header, read_at(0));
  RecordReader header_reader(header);
  uint32_t magic = 0, version = 0;
  if (!header_reader.ReadU32(&magic) || !header_reader.ReadU32(&version) || magic != kMagic ||
      version != kVersion || end < kHeaderBytes) {
    return Damaged(path, 0, absl::StrCat("magic ", magic, ", version ", version));
  }
  for (int64_t offset = kHeaderBytes; offset < end;) {
    ASSIGN_OR_RETURN(const absl::string_view head, read_at(offset));
    RecordReader reader(head);
    uint64_t key_bytes = 0, value_bytes = 0, expiration = 0;
    uint32_t header_crc = 0, blob_crc = 0;
    absl::string_view key;
    if (!reader.ReadU64(&key_bytes) || !reader.ReadU64(&value_bytes) ||
        !reader.ReadU64(&expiration) || !reader.ReadU32(&header_crc) ||
        !reader.ReadU32(&blob_crc) || key_bytes > kKeyBytesMax ||
        !reader.ReadBytes(key_bytes, &key) || value_bytes > static_cast<uint64_t>(end - offset)) {
      return Damaged(path, offset,
                     absl::StrCat("key of ", key_bytes, " bytes, value of ", value_bytes));
    }
    visit(key);
    offset += kRecordHeaderBytes + static_cast<int64_t>(key_bytes + value_bytes);
    if (offset > end) return Damaged(path, offset, "a record beyond the end");
  }
  return absl::OkStatus();
}

}  // namespace mneme
