// Bundles on disk for tests: a small network's three files, which a test may spoil before writing
// them.

#ifndef MNEME_TESTS_MODEL_BUNDLE_FILES_H_
#define MNEME_TESTS_MODEL_BUNDLE_FILES_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace mneme {

// The 8 bytes before a safetensors header of this length.
std::string SafetensorsPrefix(uint64_t header_bytes);

struct TestTensor {
  std::string dtype;  // as in the header: "F32", "I8" ..
  std::vector<int64_t> shape;
  std::string data;
};

std::string SafetensorsOf(const std::map<std::string, TestTensor>& tensors);

struct BundleFiles {
  std::string config;
  std::map<std::string, TestTensor> tensors;
  std::string tokenizer;

  // Writes the three files into `folder`, which is made.
  void Write(const std::string& folder) const;
};

// A network of width 16 with a vocabulary of 264 pieces; matrices as `matrix_dtype` (I8 with
// scales, F32 or BF16), all zero, vectors all zero.
BundleFiles SmallBundle(absl::string_view matrix_dtype);

}  // namespace mneme

#endif  // MNEME_TESTS_MODEL_BUNDLE_FILES_H_
