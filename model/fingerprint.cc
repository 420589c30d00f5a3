#include "model/fingerprint.h"

#include <cstddef>

#include "absl/numeric/bits.h"

namespace mneme {
namespace {

constexpr uint64_t kPrime1 = 0x9e3779b185ebca87;
constexpr uint64_t kPrime2 = 0xc2b2ae3d27d4eb4f;
constexpr uint64_t kPrime3 = 0x165667b19e3779f9;
constexpr uint64_t kPrime4 = 0x85ebca77c2b2ae63;
constexpr uint64_t kPrime5 = 0x27d4eb2f165667c5;

// `bytes` (at most 8) little-endian bytes at `p`.
uint64_t Load(const char* p, int bytes) {
  uint64_t value = 0;
  for (int i = bytes - 1; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(p[i]);
  return value;
}

uint64_t Round(uint64_t lane, uint64_t input) {
  return absl::rotl(lane + input * kPrime2, 31) * kPrime1;
}

uint64_t MergeLane(uint64_t hash, uint64_t lane) {
  return (hash ^ Round(0, lane)) * kPrime1 + kPrime4;
}

}  // namespace

uint64_t Fingerprint64(absl::string_view data, uint64_t seed) {
  const char* p = data.data();
  size_t left = data.size();
  uint64_t hash = seed + kPrime5;
  if (left >= 32) {
    uint64_t lanes[4] = {seed + kPrime1 + kPrime2, seed + kPrime2, seed, seed - kPrime1};
    for (; left >= 32; p += 32, left -= 32) {
      for (int i = 0; i < 4; ++i) lanes[i] = Round(lanes[i], Load(p + 8 * i, 8));
    }
    hash = absl::rotl(lanes[0], 1) + absl::rotl(lanes[1], 7) + absl::rotl(lanes[2], 12) +
           absl::rotl(lanes[3], 18);
    for (uint64_t lane : lanes) hash = MergeLane(hash, lane);
  }
  hash += data.size();
  for (; left >= 8; p += 8, left -= 8) {
    hash = absl::rotl(hash ^ Round(0, Load(p, 8)), 27) * kPrime1 + kPrime4;
  }
  if (left >= 4) {
    hash = absl::rotl(hash ^ Load(p, 4) * kPrime1, 23) * kPrime2 + kPrime3;
    p += 4, left -= 4;
  }
  for (; left > 0; ++p, --left) hash = absl::rotl(hash ^ Load(p, 1) * kPrime5, 11) * kPrime1;
  hash = (hash ^ hash >> 33) * kPrime2;
  hash = (hash ^ hash >> 29) * kPrime3;
  return hash ^ hash >> 32;
}

}  // namespace mneme
