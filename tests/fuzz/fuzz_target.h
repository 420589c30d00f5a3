// One fuzz target a file, <name>_fuzzer.cc:
//
//   std::vector<std::string> Seeds() { return {...}; }                    // valid inputs, small
//   MNEME_FUZZ_TARGET(SafetensorsHeader, Seeds) { ... `input` ... }       // must not crash,
//   whatever the bytes
//
// With MNEME_FUZZ (clang) it becomes the program bin/<name>_fuzzer on libFuzzer. In every build it
// is also a test of mneme_fuzz_tests, which runs the same entry over the seeds and over a fixed
// number of mutations of them. What must hold is said with MNEME_CHECK, which both notice.

#ifndef MNEME_TESTS_FUZZ_FUZZ_TARGET_H_
#define MNEME_TESTS_FUZZ_FUZZ_TARGET_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

#ifdef MNEME_LIBFUZZER

#define MNEME_FUZZ_TARGET(Name, seeds)                                      \
  [[maybe_unused]] static const auto kSeedsOf##Name = &seeds;               \
  static void Fuzz##Name(absl::string_view input);                          \
  extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { \
    Fuzz##Name({reinterpret_cast<const char*>(data), size});                \
    return 0;                                                               \
  }                                                                         \
  static void Fuzz##Name(absl::string_view input)

#else

#include "gtest/gtest.h"

namespace mneme {

// Calls `fuzz` with each seed and with `mutations` changes of them: bits flipped, bytes
// overwritten, ranges cut, doubled or taken from another seed. Always the same ones.
void RunMutatedSeeds(const std::vector<std::string>& seeds, void (*fuzz)(absl::string_view),
                     int mutations = 3000);

}  // namespace mneme

#define MNEME_FUZZ_TARGET(Name, seeds)                                                          \
  static void Fuzz##Name(absl::string_view input);                                              \
  TEST(FuzzTest, Name##SurvivesMutatedSeeds) { ::mneme::RunMutatedSeeds(seeds(), Fuzz##Name); } \
  static void Fuzz##Name(absl::string_view input)

#endif  // MNEME_LIBFUZZER

#endif  // MNEME_TESTS_FUZZ_FUZZ_TARGET_H_
