// A model bundle on disk: config.json, model.safetensors, tokenizer.model. Read once, checked
// tensor by tensor.

#ifndef MNEME_MODEL_BUNDLE_H_
#define MNEME_MODEL_BUNDLE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/dtype.h"
#include "model/config.h"
#include "model/tokenizer.h"

namespace mneme {

// One tensor as stored. `data` points into the mapped file and may be unaligned for its dtype.
struct TensorView {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  absl::Span<const uint8_t> data;

  int64_t elements() const;
};

// A memory-mapped safetensors file. Thread-compatible; views live as long as it.
class SafetensorsFile {
 public:
  // INVALID_ARGUMENT for a malformed or truncated file (names the tensor), NOT_FOUND when absent.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();

  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  // The whole file, header included.
  absl::Span<const uint8_t> contents() const {
    return {static_cast<const uint8_t*>(mapping_), mapping_bytes_};
  }

 private:
  SafetensorsFile() = default;
  void* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
  std::map<std::string, TensorView> tensors_;
};

// Parses the header of a safetensors file held in memory (also the fuzz target's entry).
absl::StatusOr<std::map<std::string, TensorView>> ParseSafetensors(absl::Span<const uint8_t> file);

struct Bundle {
  ModelConfig config;
  std::unique_ptr<SafetensorsFile> weights;
  std::unique_ptr<Tokenizer> tokenizer;
  // XXH64 of the three files, each seeded with the hash of the one before (config.json,
  // model.safetensors, tokenizer.model; first seed 0); stored with every derived record.
  uint64_t fingerprint = 0;
  int64_t parameter_count = 0;
  TokenId pad_id = 0, question_id = 0, answer_id = 0, document_id = 0;
  TokenId line_end_id = -1;  // no token's where told_penalty is 0
};

// Loads a bundle and checks that the weights hold exactly the tensors that the config asks for,
// with their shapes and dtypes (2-D matrices I8 with an F32 `name.scale` of one per row, or F32 or
// BF16; vectors F32) and finite numbers. INVALID_ARGUMENT names the first tensor or field that is
// missing, unexpected or wrong, with both shapes or the number; NOT_FOUND names a missing file.
absl::StatusOr<std::unique_ptr<Bundle>> LoadBundle(const std::string& folder);

// Every tensor that a network of this config has, without scales: name -> shape.
std::map<std::string, std::vector<int64_t>> ExpectedTensors(const ModelConfig& config);

}  // namespace mneme

#endif  // MNEME_MODEL_BUNDLE_H_
