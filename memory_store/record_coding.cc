#include "memory_store/record_coding.h"

#include <limits>

namespace mneme {
namespace {

template <typename T>
void PutLittleEndian(std::string* out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) out->push_back(static_cast<char>(value >> (8 * i)));
}

template <typename T>
T GetLittleEndian(absl::string_view bytes) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) {
    value |= static_cast<T>(static_cast<uint8_t>(bytes[i])) << (8 * i);
  }
  return value;
}

}  // namespace

void PutU8(std::string* out, uint8_t value) { out->push_back(static_cast<char>(value)); }
void PutU32(std::string* out, uint32_t value) { PutLittleEndian(out, value); }
void PutU64(std::string* out, uint64_t value) { PutLittleEndian(out, value); }

void PutString(std::string* out, absl::string_view value) {
  PutU32(out, static_cast<uint32_t>(value.size()));
  out->append(value.data(), value.size());
}

bool RecordReader::Fail() {
  failed_ = true;
  rest_ = {};
  return false;
}

bool RecordReader::ReadBytes(uint64_t count, absl::string_view* value) {
  if (failed_ || count > rest_.size()) return Fail();
  *value = rest_.substr(0, count);
  rest_.remove_prefix(count);
  return true;
}

bool RecordReader::ReadU8(uint8_t* value) {
  absl::string_view bytes;
  if (!ReadBytes(1, &bytes)) return false;
  *value = static_cast<uint8_t>(bytes[0]);
  return true;
}

bool RecordReader::ReadU32(uint32_t* value) {
  absl::string_view bytes;
  if (!ReadBytes(4, &bytes)) return false;
  *value = GetLittleEndian<uint32_t>(bytes);
  return true;
}

bool RecordReader::ReadU64(uint64_t* value) {
  absl::string_view bytes;
  if (!ReadBytes(8, &bytes)) return false;
  *value = GetLittleEndian<uint64_t>(bytes);
  return true;
}

bool RecordReader::ReadI32(int32_t* value) {
  uint32_t bits;
  if (!ReadU32(&bits)) return false;
  if (bits > static_cast<uint32_t>(std::numeric_limits<int32_t>::max())) return Fail();
  *value = static_cast<int32_t>(bits);
  return true;
}

bool RecordReader::ReadI64(int64_t* value) {
  uint64_t bits;
  if (!ReadU64(&bits)) return false;
  if (bits > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return Fail();
  *value = static_cast<int64_t>(bits);
  return true;
}

bool RecordReader::ReadString(absl::string_view* value) {
  uint32_t size;
  return ReadU32(&size) && ReadBytes(size, value);
}

}  // namespace mneme
