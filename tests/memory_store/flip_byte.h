// For tests of damage: bytes of files that are not what was written.

#ifndef MNEME_TESTS_MEMORY_STORE_FLIP_BYTE_H_
#define MNEME_TESTS_MEMORY_STORE_FLIP_BYTE_H_

#include <cstdint>
#include <fstream>
#include <string>

namespace mneme {

// The second time at the same place the file is as it was.
inline void FlipByte(const std::string& path, int64_t at) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(at);
  const char byte = static_cast<char>(file.get() ^ 0x5a);
  file.seekp(at);
  file.put(byte);
}

}  // namespace mneme

#endif  // MNEME_TESTS_MEMORY_STORE_FLIP_BYTE_H_
