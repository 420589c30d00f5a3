#include "tests/model/bundle_files.h"

#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "model/bundle.h"
#include "tests/model/spm_models.h"

namespace mneme {
namespace {

constexpr char kSmallConfig[] = R"({
  "model_type": "ramba", "vocab_size": 264, "d_model": 16, "n_lower_layers": 1, "n_upper_layers": 2,
  "expand": 2, "ssm_head_dim": 8, "ssm_state_size": 4, "conv_kernel": 4, "ssm_block": 8, "n_heads": 2,
  "n_kv_heads": 1, "chunk_size": 4, "chunks_per_read": 2, "landmark_dim": 8, "encoder_layers": 1,
  "encoder_ffn": 24, "hsa_every": 2, "rope_base": 10000.0, "norm_eps": 1e-05, "segment_size": 16,
  "pad_token": "<doc>", "question_token": "<q>", "answer_token": "<a>", "document_token": "<doc>"
})";

int64_t Elements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (int64_t length : shape) count *= length;
  return count;
}

TestTensor ZeroTensor(absl::string_view dtype, const std::vector<int64_t>& shape) {
  const int64_t element_bytes = dtype == "F32" ? 4 : dtype == "BF16" ? 2 : 1;
  return {std::string(dtype), shape,
          std::string(static_cast<size_t>(Elements(shape) * element_bytes), '\0')};
}

}  // namespace

std::string SafetensorsPrefix(uint64_t header_bytes) {
  std::string prefix;
  for (int i = 0; i < 8; ++i) prefix.push_back(static_cast<char>(header_bytes >> 8 * i));
  return prefix;
}

std::string SafetensorsOf(const std::map<std::string, TestTensor>& tensors) {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const size_t begin = data.size();
    data += tensor.data;
    header[name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  const std::string text = header.dump();
  return SafetensorsPrefix(text.size()) + text + data;
}

void BundleFiles::Write(const std::string& folder) const {
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/config.json", std::ios::binary) << config;
  std::ofstream(folder + "/model.safetensors", std::ios::binary) << SafetensorsOf(tensors);
  std::ofstream(folder + "/tokenizer.model", std::ios::binary) << tokenizer;
}

BundleFiles SmallBundle(absl::string_view matrix_dtype) {
  BundleFiles files;
  files.config = kSmallConfig;
  for (const auto& [name, shape] : ExpectedTensors(ParseModelConfig(kSmallConfig).value())) {
    const bool is_matrix = shape.size() == 2 && !absl::StrContains(name, "conv1d");
    files.tensors[name] = ZeroTensor(is_matrix ? matrix_dtype : "F32", shape);
    if (is_matrix && matrix_dtype == "I8")
      files.tensors[name + ".scale"] = ZeroTensor("F32", {shape[0]});
  }
  files.tokenizer = ModelOf(WithSpecialPieces({{"<q>", 0, BpePiece::Type::kUserDefined},
                                               {"<a>", 0, BpePiece::Type::kUserDefined},
                                               {"<doc>", 0, BpePiece::Type::kUserDefined},
                                               {"\u2581", -1},
                                               {"a", -2}}))
                        .SerializeAsString();
  return files;
}

}  // namespace mneme
