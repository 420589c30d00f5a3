// Bytes of a record: little-endian integers and length-prefixed strings, appended by free functions
// and read back by a RecordReader that never reads past its end.

#ifndef MNEME_MEMORY_STORE_RECORD_CODING_H_
#define MNEME_MEMORY_STORE_RECORD_CODING_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace mneme {

void PutU8(std::string* out, uint8_t value);
void PutU32(std::string* out, uint32_t value);
void PutU64(std::string* out, uint64_t value);
// Length as u32, then the bytes.
void PutString(std::string* out, absl::string_view value);

// Reads what the functions above wrote. Each Read returns false, and reads nothing more from then
// on, when the bytes end too early. Borrows `data`. Thread-compatible.
class RecordReader {
 public:
  explicit RecordReader(absl::string_view data) : rest_(data) {}

  bool ReadU8(uint8_t* value);
  bool ReadU32(uint32_t* value);
  bool ReadU64(uint64_t* value);
  bool ReadI32(int32_t* value);
  // False for a value beyond INT64_MAX, too: every signed number of a record is a count or an
  // offset.
  bool ReadI64(int64_t* value);
  bool ReadString(absl::string_view* value);
  bool ReadBytes(uint64_t count, absl::string_view* value);

  absl::string_view rest() const { return rest_; }

 private:
  bool Fail();

  absl::string_view rest_;
  bool failed_ = false;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_RECORD_CODING_H_
