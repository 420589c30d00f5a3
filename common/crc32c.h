// CRC-32C (Castagnoli), the checksum of every on-disk record. Hardware instruction where the
// processor has one.

#ifndef MNEME_COMMON_CRC32C_H_
#define MNEME_COMMON_CRC32C_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace mneme {

// CRC of `data`, continuing from `crc`, the CRC of what came before it (0 at the beginning).
uint32_t Crc32c(absl::string_view data, uint32_t crc = 0);

}  // namespace mneme

#endif  // MNEME_COMMON_CRC32C_H_
