// The driver of fuzz targets in ordinary test runs.

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/fuzz/fuzz_target.h"

namespace mneme {
namespace {

size_t Below(std::mt19937_64& random, size_t limit) { return limit == 0 ? 0 : random() % limit; }

void MutateOnce(std::mt19937_64& random, const std::string& other, std::string* input) {
  static constexpr unsigned char kTelling[] = {0,   1,   0x7f, 0x80, 0xff, '"',
                                               '{', '[', ':',  '/',  ' ',  '9'};
  const size_t at = Below(random, input->size() + 1);
  const size_t bytes = std::min(input->size() - at, 1 + Below(random, 16));
  switch (random() % 7) {
    case 0:
      if (at < input->size()) (*input)[at] ^= static_cast<char>(1 << random() % 8);
      break;
    case 1:
      if (at < input->size())
        (*input)[at] = static_cast<char>(kTelling[Below(random, std::size(kTelling))]);
      break;
    case 2:
      input->erase(at, bytes);
      break;
    case 3:
      input->insert(at, input->substr(at, bytes));
      break;
    case 4:
      input->insert(at, 1, static_cast<char>(random()));
      break;
    case 5: {
      const size_t from = Below(random, other.size() + 1);
      input->replace(at, bytes, other.substr(from, Below(random, 64)));
      break;
    }
    case 6:
      if (random() % 4 == 0) input->resize(at);
      break;
  }
}

}  // namespace

void RunMutatedSeeds(const std::vector<std::string>& seeds, void (*fuzz)(absl::string_view),
                     int mutations) {
  constexpr uint64_t kRandomSeed = 0x6d6e656d65;
  SCOPED_TRACE(absl::StrCat("random seed ", kRandomSeed));
  std::mt19937_64 random(kRandomSeed);
  fuzz("");
  for (const std::string& seed : seeds) fuzz(seed);
  for (int i = 0; i < mutations; ++i) {
    std::string input = seeds[Below(random, seeds.size())];
    for (size_t n = 1 + Below(random, 6); n > 0; --n) {
      MutateOnce(random, seeds[Below(random, seeds.size())], &input);
    }
    fuzz(input);
  }
}

}  // namespace mneme
