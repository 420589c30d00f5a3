#include "model/network_weights.h"

#include <cmath>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

// Rows times a weight down to this keep the bits that bf16 gives them, but for values that are
// nothing beside the others of their row.
constexpr float kNormLeast = 1e-15f;

class WeightPacker {
 public:
  WeightPacker(const Bundle& bundle, Backend& backend, DType compute_dtype)
      : config_(bundle.config),
        tensors_(bundle.weights->tensors()),
        backend_(backend),
        compute_dtype_(compute_dtype) {}

  absl::StatusOr<std::vector<float>> Values(const std::string& name) const {
    ASSIGN_OR_RETURN(const TensorView* tensor, Find(name));
    if (tensor->dtype != DType::kF32) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", name, " must be f32, not ", DTypeName(tensor->dtype)));
    }
    std::vector<float> values(tensor->data.size() / sizeof(float));
    if (!values.empty()) {
      std::memcpy(values.data(), tensor->data.data(), values.size() * sizeof(float));
    }
    return values;
  }

  absl::StatusOr<Buffer> Upload(const std::vector<float>& values) const {
    const int64_t bytes = static_cast<int64_t>(values.size() * sizeof(float));
    ASSIGN_OR_RETURN(Buffer buffer, backend_.Allocate(bytes));
    RETURN_IF_ERROR(backend_.CopyIn(buffer.data(), values.data(), bytes));
    return buffer;
  }

  absl::Status Vector(const std::string& name, Buffer* to) const {
    ASSIGN_OR_RETURN(const std::vector<float> values, Values(name));
    ASSIGN_OR_RETURN(*to, Upload(values));
    return absl::OkStatus();
  }

  // Inverts the norms of the lower half and of the encoder; false where one cannot be.
  absl::StatusOr<bool> InvertNorms(NetworkWeights* weights) const {
    bool all = true;
    const auto invert = [&](const std::string& name, Buffer* to) -> absl::Status {
      ASSIGN_OR_RETURN(std::vector<float> values, Values(name));
      for (float& value : values) {
        all &= std::fabs(value) >= kNormLeast && std::fabs(value) <= 1 / kNormLeast;
        value = 1 / value;
      }
      ASSIGN_OR_RETURN(*to, Upload(values));
      return absl::OkStatus();
    };
    for (size_t i = 0; i < weights->lower.size(); ++i) {
      RETURN_IF_ERROR(
          invert(absl::StrCat("lower.", i, ".norm.weight"), &weights->lower[i].norm_inverse));
    }
    for (size_t i = 0; i < weights->encoder.layers.size(); ++i) {
      const std::string layer = absl::StrCat("chunk_encoder.layers.", i, ".");
      EncoderLayerWeights& to = weights->encoder.layers[i];
      RETURN_IF_ERROR(invert(layer + "attn_norm.weight", &to.attn_norm_inverse));
      RETURN_IF_ERROR(invert(layer + "mlp_norm.weight", &to.mlp_norm_inverse));
    }
    return all;
  }

  // One matrix, or several below each other.
  absl::Status Matrix(const std::vector<std::string>& names, std::unique_ptr<PackedWeight>* to,
                      bool embed = false, bool swiglu = false) const {
    std::vector<WeightSource> parts;
    for (const std::string& name : names) {
      ASSIGN_OR_RETURN(const TensorView* tensor, Find(name));
      if (tensor->shape.size() != 2) {
        return absl::InvalidArgumentError(absl::StrCat("tensor ", name, " must have 2 dimensions"));
      }
      WeightSource part = {.dtype = tensor->dtype,
                           .rows = tensor->shape[0],
                           .cols = tensor->shape[1],
                           .data = tensor->data.data()};
      if (tensor->dtype == DType::kI8) {
        ASSIGN_OR_RETURN(const TensorView* scale, Find(name + ".scale"));
        part.scale = reinterpret_cast<const float*>(scale->data.data());
      }
      parts.push_back(part);
    }
    ASSIGN_OR_RETURN(
        *to, backend_.PackWeight(
                 parts, {.compute_dtype = compute_dtype_, .embed = embed, .swiglu = swiglu}));
    return absl::OkStatus();
  }

  absl::Status Mamba(const std::string& prefix, MambaWeights* to) const {
    RETURN_IF_ERROR(Vector(prefix + "norm.weight", &to->norm));
    RETURN_IF_ERROR(Vector(prefix + "conv1d_weight", &to->conv_weight));
    RETURN_IF_ERROR(Vector(prefix + "conv1d_bias", &to->conv_bias));
    RETURN_IF_ERROR(Vector(prefix + "dt_bias", &to->dt_bias));
    RETURN_IF_ERROR(Vector(prefix + "A_log", &to->a_log));
    RETURN_IF_ERROR(Vector(prefix + "D", &to->d_skip));
    RETURN_IF_ERROR(Vector(prefix + "gate_norm.weight", &to->gate_norm));
    RETURN_IF_ERROR(Matrix({prefix + "in_proj.weight"}, &to->in_proj));
    return Matrix({prefix + "out_proj.weight"}, &to->out_proj);
  }

  absl::Status Encoder(ChunkEncoderWeights* to) const {
    const std::string prefix = "chunk_encoder.";
    RETURN_IF_ERROR(Vector(prefix + "cls", &to->cls));
    RETURN_IF_ERROR(Vector(prefix + "in_norm.weight", &to->in_norm));
    RETURN_IF_ERROR(Vector(prefix + "norm.weight", &to->norm));
    RETURN_IF_ERROR(Vector(prefix + "k_norm.weight", &to->k_norm));
    RETURN_IF_ERROR(Vector(prefix + "landmark_norm.weight", &to->landmark_norm));
    RETURN_IF_ERROR(Matrix({prefix + "k_proj.weight", prefix + "v_proj.weight"}, &to->kv_proj));
    RETURN_IF_ERROR(Matrix({prefix + "landmark_proj.weight"}, &to->landmark_proj));
    to->layers.resize(config_.encoder_layers);
    for (int i = 0; i < config_.encoder_layers; ++i) {
      const std::string layer = absl::StrCat(prefix, "layers.", i, ".");
      EncoderLayerWeights& weights = to->layers[i];
      RETURN_IF_ERROR(Vector(layer + "attn_norm.weight", &weights.attn_norm));
      RETURN_IF_ERROR(Vector(layer + "q_norm.weight", &weights.q_norm));
      RETURN_IF_ERROR(Vector(layer + "k_norm.weight", &weights.k_norm));
      RETURN_IF_ERROR(Vector(layer + "mlp_norm.weight", &weights.mlp_norm));
      RETURN_IF_ERROR(Matrix({layer + "qkv.weight"}, &weights.qkv));
      RETURN_IF_ERROR(Matrix({layer + "attn_out.weight"}, &weights.attn_out));
      RETURN_IF_ERROR(Matrix({layer + "gate_up.weight"}, &weights.gate_up, /*embed=*/false,
                             backend_.activation_dtype(compute_dtype_) == DType::kBf16 &&
                                 config_.encoder_ffn % 8 == 0));
      RETURN_IF_ERROR(Matrix({layer + "down.weight"}, &weights.down));
    }
    return Rope(to);
  }

  absl::Status Rope(ChunkEncoderWeights* to) const {
    const int positions = config_.encoder_rows(), width = config_.head_dim();
    std::vector<float> cosine, sine;
    for (int t = 0; t < positions; ++t) {
      for (int i = 0; i < width / 2; ++i) {
        const double angle = t * std::pow(config_.rope_base, -2.0 * i / width);
        cosine.push_back(static_cast<float>(std::cos(angle)));
        sine.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    ASSIGN_OR_RETURN(to->cosine, Upload(cosine));
    ASSIGN_OR_RETURN(to->sine, Upload(sine));
    return absl::OkStatus();
  }

  absl::Status Retrieval(NetworkWeights* to) const {
    RETURN_IF_ERROR(Vector("retrieval_norm.weight", &to->retrieval_norm));
    RETURN_IF_ERROR(Matrix({"retrieval_proj.weight"}, &to->retrieval_proj));
    ASSIGN_OR_RETURN(std::vector<float> scale, Values("retrieval_q_norm.weight"));
    ASSIGN_OR_RETURN(const std::vector<float> log_scale, Values("retrieval_log_scale"));
    if (log_scale.size() != 1) {
      return absl::InvalidArgumentError("tensor retrieval_log_scale must have one element");
    }
    for (float& value : scale) {
      value = static_cast<float>(value * std::exp(double{log_scale[0]}) / config_.landmark_dim);
      if (!std::isfinite(value)) {
        return absl::InvalidArgumentError(
            absl::StrCat("tensor retrieval_log_scale is ", log_scale[0],
                         ": its exponential times retrieval_q_norm.weight is beyond a float"));
      }
    }
    ASSIGN_OR_RETURN(to->retrieval_scale, Upload(scale));
    return absl::OkStatus();
  }

  absl::Status Look(LookWeights* to) const {
    RETURN_IF_ERROR(Vector("look.norm.weight", &to->norm));
    RETURN_IF_ERROR(Vector("look.q_norm.weight", &to->q_norm));
    RETURN_IF_ERROR(Vector("look.head_weight", &to->head_weight));
    return Matrix({"look.q_proj.weight"}, &to->q_proj);
  }

  absl::Status Hsa(int index, HsaWeights* to) const {
    const std::string prefix = absl::StrCat("hsa.", index, ".");
    RETURN_IF_ERROR(Vector(prefix + "norm.weight", &to->norm));
    RETURN_IF_ERROR(Vector(prefix + "q_norm.weight", &to->q_norm));
    RETURN_IF_ERROR(Matrix({prefix + "q_proj.weight"}, &to->q_proj));
    return Matrix({prefix + "o_proj.weight"}, &to->o_proj);
  }

 private:
  absl::StatusOr<const TensorView*> Find(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", name, " is missing"));
    }
    return &found->second;
  }

  const ModelConfig& config_;
  const std::map<std::string, TensorView>& tensors_;
  Backend& backend_;
  const DType compute_dtype_;
};

}  // namespace

absl::StatusOr<NetworkWeights> PackNetworkWeights(const Bundle& bundle, Backend& backend,
                                                  DType compute_dtype) {
  const WeightPacker packer(bundle, backend, compute_dtype);
  const ModelConfig& config = bundle.config;
  NetworkWeights weights;
  RETURN_IF_ERROR(packer.Matrix({"embedding.weight"}, &weights.embedding, /*embed=*/true));
  weights.lower.resize(config.n_lower_layers);
  for (int i = 0; i < config.n_lower_layers; ++i) {
    RETURN_IF_ERROR(packer.Mamba(absl::StrCat("lower.", i, "."), &weights.lower[i]));
  }
  RETURN_IF_ERROR(packer.Encoder(&weights.encoder));
  RETURN_IF_ERROR(packer.Retrieval(&weights));
  if (config.look_heads > 0) RETURN_IF_ERROR(packer.Look(&weights.look));
  weights.upper.resize(config.n_upper_layers);
  for (int i = 0; i < config.n_upper_layers; ++i) {
    RETURN_IF_ERROR(packer.Mamba(absl::StrCat("upper.", i, "."), &weights.upper[i]));
  }
  weights.hsa.resize(config.hsa_layers());
  for (int i = 0; i < config.hsa_layers(); ++i) {
    RETURN_IF_ERROR(packer.Hsa(i, &weights.hsa[i]));
  }
  RETURN_IF_ERROR(packer.Vector("norm.weight", &weights.norm));
  if (backend.activation_dtype(compute_dtype) == DType::kBf16) {
    ASSIGN_OR_RETURN(weights.norms_inverted, packer.InvertNorms(&weights));
  }
  return weights;
}

}  // namespace mneme
