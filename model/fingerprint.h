// 64-bit hash of file contents, stable across machines and versions: XXH64 (https://xxhash.com,
// specification).

#ifndef MNEME_MODEL_FINGERPRINT_H_
#define MNEME_MODEL_FINGERPRINT_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace mneme {

// XXH64 of `data`. Several parts are chained by passing the hash of one as the seed of the next.
uint64_t Fingerprint64(absl::string_view data, uint64_t seed);

}  // namespace mneme

#endif  // MNEME_MODEL_FINGERPRINT_H_
