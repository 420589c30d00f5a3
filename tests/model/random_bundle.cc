#include "tests/model/random_bundle.h"

#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/model/bundle_files.h"

namespace mneme {
namespace {

std::string Bytes(const void* data, size_t size) { return {static_cast<const char*>(data), size}; }

// Around the values that training gives: norms near 1, decays from slow to fast, matrices that keep
// the size of what goes through them.
float RandomValue(const std::string& name, int64_t fan_in, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform;
  if (absl::EndsWith(name, "norm.weight")) return 1 + 0.1f * normal(random);
  if (absl::EndsWith(name, "A_log")) return std::log(1 + 15 * uniform(random));
  if (absl::EndsWith(name, "dt_bias")) return -4 + 4 * uniform(random);
  if (absl::EndsWith(name, ".D")) return 1 + 0.1f * normal(random);
  if (name == "retrieval_log_scale") return std::log(8.0f);
  if (absl::StrContains(name, "conv1d_weight")) return 0.4f * normal(random);
  if (absl::StrContains(name, "conv1d_bias")) return 0.1f * normal(random);
  return normal(random) / std::sqrt(static_cast<float>(fan_in));
}

}  // namespace

void WriteRandomBundle(const RandomShape& shape, absl::string_view matrix_dtype, uint32_t seed,
                       const std::string& folder) {
  std::mt19937 random(seed);
  BundleFiles files = SmallBundle(matrix_dtype);
  nlohmann::json config = nlohmann::json::parse(files.config);
  config["d_model"] = shape.d_model;
  config["n_lower_layers"] = shape.n_lower_layers;
  config["n_upper_layers"] = shape.n_upper_layers;
  config["ssm_head_dim"] = shape.ssm_head_dim;
  config["ssm_state_size"] = shape.ssm_state_size;
  config["conv_kernel"] = shape.conv_kernel;
  config["n_heads"] = shape.n_heads;
  config["chunk_size"] = shape.chunk_size;
  config["chunks_per_read"] = shape.chunks_per_read;
  config["landmark_dim"] = shape.landmark_dim;
  config["encoder_layers"] = shape.encoder_layers;
  config["encoder_ffn"] = shape.encoder_ffn;
  if (shape.encoder_halo > 0) config["encoder_halo"] = shape.encoder_halo;
  config["hsa_every"] = shape.hsa_every;
  config["segment_size"] = shape.segment_size;
  if (shape.look_heads > 0) config["look_heads"] = shape.look_heads;
  if (shape.newest_margin > 0) config["newest_margin"] = shape.newest_margin;
  if (shape.told_penalty > 0) {
    config["told_penalty"] = shape.told_penalty;
    config["line_end_token"] = "<0x0A>";
  }
  files.config = config.dump();
  files.tensors.clear();
  for (const auto& [name, dimensions] : ExpectedTensors(ParseModelConfig(files.config).value())) {
    int64_t elements = 1;
    for (int64_t length : dimensions) elements *= length;
    const bool is_matrix = dimensions.size() == 2 && !absl::StrContains(name, "conv1d");
    const int64_t cols = dimensions.empty() ? 1 : dimensions.back();
    TestTensor tensor = {is_matrix ? std::string(matrix_dtype) : "F32", dimensions, ""};
    std::string scales;
    for (int64_t i = 0; i < elements; ++i) {
      const float value = RandomValue(name, cols, random);
      if (!is_matrix || matrix_dtype == "F32") {
        tensor.data += Bytes(&value, 4);
      } else if (matrix_dtype == "BF16") {
        const Bf16 half = FloatToBf16(value);
        tensor.data += Bytes(&half, 2);
      } else {
        const float scale = 3.0f / 127 / std::sqrt(static_cast<float>(cols));
        tensor.data += static_cast<char>(std::lround(std::clamp(value / scale, -127.0f, 127.0f)));
        if (i % cols == 0) scales += Bytes(&scale, 4);
      }
    }
    files.tensors[name] = tensor;
    if (!scales.empty()) files.tensors[name + ".scale"] = {"F32", {dimensions[0]}, scales};
  }
  files.Write(folder);
}

std::unique_ptr<Bundle> RandomBundle(const RandomShape& shape, absl::string_view matrix_dtype,
                                     uint32_t seed) {
  static std::atomic<int> count{0};
  const std::string folder =
      absl::StrCat(testing::TempDir(), "/random_bundle_", getpid(), "_", count++);
  WriteRandomBundle(shape, matrix_dtype, seed, folder);
  absl::StatusOr<std::unique_ptr<Bundle>> bundle = LoadBundle(folder);
  std::filesystem::remove_all(folder);  // the mapping outlives the file's name
  EXPECT_TRUE(bundle.ok()) << bundle.status();
  return bundle.ok() ? *std::move(bundle) : nullptr;
}

}  // namespace mneme
