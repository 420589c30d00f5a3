#include "model/bundle.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "model/fingerprint.h"

namespace mneme {
namespace {

using Shape = std::vector<int64_t>;

constexpr absl::string_view kScaleSuffix = ".scale";
// config.json and tokenizer.model; a larger file is not one of these.
constexpr int64_t kMaxSmallFileBytes = 64 << 20;

std::string ShapeText(const Shape& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  // A directory opens too, and what it says of its size depends on the file system.
  std::error_code error;
  const bool is_file = std::filesystem::is_regular_file(path, error);
  const int64_t bytes = is_file && file.seekg(0, std::ios::end) ? int64_t{file.tellg()} : -1;
  if (bytes < 0 || bytes > kMaxSmallFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is not a regular file of at most ", kMaxSmallFileBytes, " bytes"));
  }
  std::string contents(static_cast<size_t>(bytes), '\0');
  file.seekg(0);
  if (!file.read(contents.data(), bytes)) {
    return absl::InvalidArgumentError(absl::StrCat("cannot read ", bytes, " bytes of ", path));
  }
  return contents;
}

// Every matrix may be quantised; the taps of the convolution are not a matrix in this sense.
bool IsMatrix(absl::string_view name, const Shape& shape) {
  return shape.size() == 2 && !absl::EndsWith(name, "conv1d_weight");
}

absl::Status Invalid(absl::string_view tensor, absl::string_view problem) {
  return absl::InvalidArgumentError(
      absl::StrCat("model.safetensors: tensor \"", absl::Utf8SafeCEscape(tensor), "\" ", problem));
}

float AsFloat(float value) { return value; }
float AsFloat(Bf16 value) { return Bf16ToFloat(value); }

template <typename T>
absl::Status CheckFinite(absl::string_view name, const TensorView& view) {
  for (int64_t i = 0; i < view.elements(); ++i) {
    T element;
    std::memcpy(&element, view.data.data() + i * sizeof(T), sizeof(T));
    if (const float value = AsFloat(element); !std::isfinite(value)) {
      return Invalid(name, absl::StrCat("holds ", value, " at element ", i));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckShape(absl::string_view name, const TensorView& view, const Shape& expected) {
  if (view.shape == expected) return absl::OkStatus();
  return Invalid(name, absl::StrCat("has shape ", ShapeText(view.shape), ", config.json asks for ",
                                    ShapeText(expected)));
}

absl::Status CheckVector(absl::string_view name, const TensorView& view, const Shape& expected) {
  RETURN_IF_ERROR(CheckShape(name, view, expected));
  if (view.dtype != DType::kF32) {
    return Invalid(name, absl::StrCat("is ", DTypeName(view.dtype), ", expected f32"));
  }
  return CheckFinite<float>(name, view);
}

absl::Status CheckMatrix(absl::string_view name, const TensorView& view, const Shape& expected,
                         const std::map<std::string, TensorView>& tensors) {
  RETURN_IF_ERROR(CheckShape(name, view, expected));
  const auto scale = tensors.find(absl::StrCat(name, kScaleSuffix));
  switch (view.dtype) {
    case DType::kF32:
    case DType::kBf16:
      if (scale != tensors.end()) {
        return Invalid(scale->first, absl::StrCat("is unexpected: its matrix is ",
                                                  DTypeName(view.dtype), ", not i8"));
      }
      return view.dtype == DType::kF32 ? CheckFinite<float>(name, view)
                                       : CheckFinite<Bf16>(name, view);
    case DType::kI8:
      if (scale == tensors.end()) {
        return Invalid(absl::StrCat(name, kScaleSuffix),
                       absl::StrCat("is missing: \"", name, "\" is i8"));
      }
      return CheckVector(scale->first, scale->second, {expected[0]});
    case DType::kI32:
    case DType::kI64:
      break;
  }
  return Invalid(name, absl::StrCat("is ", DTypeName(view.dtype), ", expected i8, f32 or bf16"));
}

absl::Status CheckWeights(const std::map<std::string, TensorView>& tensors,
                          const std::map<std::string, Shape>& expected) {
  for (const auto& [name, shape] : expected) {
    const auto it = tensors.find(name);
    if (it == tensors.end()) {
      return Invalid(
          name, absl::StrCat("is missing, config.json asks for it with shape ", ShapeText(shape)));
    }
    RETURN_IF_ERROR(IsMatrix(name, shape) ? CheckMatrix(name, it->second, shape, tensors)
                                          : CheckVector(name, it->second, shape));
  }
  for (const auto& [name, view] : tensors) {
    if (expected.contains(name)) continue;
    const std::string matrix(absl::StripSuffix(name, kScaleSuffix));
    const auto it = expected.find(matrix);
    if (matrix != name && it != expected.end() && IsMatrix(matrix, it->second)) continue;
    return Invalid(name, absl::StrCat("with shape ", ShapeText(view.shape),
                                      " is unexpected: a network of this config.json has none"));
  }
  return absl::OkStatus();
}

absl::StatusOr<TokenId> FindToken(const Tokenizer& tokenizer, absl::string_view field,
                                  absl::string_view piece) {
  const TokenId id = tokenizer.PieceToId(piece);
  if (id >= 0) return id;
  return absl::InvalidArgumentError(absl::StrCat("config.json: ", field, " \"",
                                                 absl::Utf8SafeCEscape(piece),
                                                 "\" is not in the vocabulary of tokenizer.model"));
}

// Adds one Mamba-2 layer.
void AddMamba(const ModelConfig& c, const std::string& prefix, std::map<std::string, Shape>* out) {
  const int64_t d = c.d_model, inner = c.inner(), heads = c.ssm_heads();
  (*out)[prefix + "norm.weight"] = {d};
  (*out)[prefix + "in_proj.weight"] = {c.in_proj_rows(), d};
  (*out)[prefix + "conv1d_weight"] = {c.conv_kernel, c.conv_dim()};
  (*out)[prefix + "conv1d_bias"] = {c.conv_dim()};
  (*out)[prefix + "dt_bias"] = {heads};
  (*out)[prefix + "A_log"] = {heads};
  (*out)[prefix + "D"] = {heads};
  (*out)[prefix + "gate_norm.weight"] = {inner};
  (*out)[prefix + "out_proj.weight"] = {d, inner};
}

void AddChunkEncoder(const ModelConfig& c, std::map<std::string, Shape>* out) {
  const int64_t d = c.d_model, head = c.head_dim(), kv = int64_t{c.n_kv_heads} * c.head_dim();
  const std::string prefix = "chunk_encoder.";
  (*out)[prefix + "cls"] = {d};
  (*out)[prefix + "in_norm.weight"] = {d};
  for (int i = 0; i < c.encoder_layers; ++i) {
    const std::string layer = absl::StrCat(prefix, "layers.", i, ".");
    (*out)[layer + "attn_norm.weight"] = {d};
    (*out)[layer + "qkv.weight"] = {3 * d, d};
    (*out)[layer + "q_norm.weight"] = {head};
    (*out)[layer + "k_norm.weight"] = {head};
    (*out)[layer + "attn_out.weight"] = {d, d};
    (*out)[layer + "mlp_norm.weight"] = {d};
    (*out)[layer + "gate_up.weight"] = {2 * int64_t{c.encoder_ffn}, d};
    (*out)[layer + "down.weight"] = {d, c.encoder_ffn};
  }
  (*out)[prefix + "norm.weight"] = {d};
  (*out)[prefix + "k_proj.weight"] = {kv, d};
  (*out)[prefix + "v_proj.weight"] = {kv, d};
  (*out)[prefix + "landmark_proj.weight"] = {c.landmark_dim, d};
  (*out)[prefix + "k_norm.weight"] = {head};
  (*out)[prefix + "landmark_norm.weight"] = {c.landmark_dim};
}

}  // namespace

std::map<std::string, Shape> ExpectedTensors(const ModelConfig& c) {
  const int64_t d = c.d_model;
  std::map<std::string, Shape> out;
  out["embedding.weight"] = {c.vocab_size, d};
  for (int i = 0; i < c.n_lower_layers; ++i) AddMamba(c, absl::StrCat("lower.", i, "."), &out);
  AddChunkEncoder(c, &out);
  out["retrieval_norm.weight"] = {d};
  out["retrieval_proj.weight"] = {c.landmark_dim, d};
  out["retrieval_q_norm.weight"] = {c.landmark_dim};
  out["retrieval_log_scale"] = {};
  for (int i = 0; i < c.n_upper_layers; ++i) AddMamba(c, absl::StrCat("upper.", i, "."), &out);
  for (int i = 0; i < c.hsa_layers(); ++i) {
    const std::string layer = absl::StrCat("hsa.", i, ".");
    out[layer + "norm.weight"] = {d};
    out[layer + "q_proj.weight"] = {d, d};
    out[layer + "q_norm.weight"] = {c.head_dim()};
    out[layer + "o_proj.weight"] = {d, d};
  }
  if (c.look_heads > 0) {
    out["look.norm.weight"] = {d};
    out["look.q_proj.weight"] = {int64_t{c.look_heads} * c.head_dim(), d};
    out["look.q_norm.weight"] = {c.head_dim()};
    out["look.head_weight"] = {c.look_heads};
  }
  out["norm.weight"] = {d};
  return out;
}

absl::StatusOr<std::unique_ptr<Bundle>> LoadBundle(const std::string& folder) {
  auto bundle = std::make_unique<Bundle>();
  ASSIGN_OR_RETURN(const std::string config_text, ReadSmallFile(folder + "/config.json"));
  ASSIGN_OR_RETURN(bundle->config, ParseModelConfig(config_text));
  ASSIGN_OR_RETURN(bundle->weights, SafetensorsFile::Open(folder + "/model.safetensors"));
  const std::map<std::string, Shape> expected = ExpectedTensors(bundle->config);
  RETURN_IF_ERROR(CheckWeights(bundle->weights->tensors(), expected));
  ASSIGN_OR_RETURN(const std::string tokenizer_text, ReadSmallFile(folder + "/tokenizer.model"));
  ASSIGN_OR_RETURN(bundle->tokenizer, Tokenizer::Load(tokenizer_text));
  const Tokenizer& tokenizer = *bundle->tokenizer;
  if (tokenizer.vocab_size() > bundle->config.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: vocab_size is ", bundle->config.vocab_size,
                     ", but tokenizer.model has ", tokenizer.vocab_size(), " pieces"));
  }
  const ModelConfig& c = bundle->config;
  ASSIGN_OR_RETURN(bundle->pad_id, FindToken(tokenizer, "pad_token", c.pad_token));
  ASSIGN_OR_RETURN(bundle->question_id, FindToken(tokenizer, "question_token", c.question_token));
  ASSIGN_OR_RETURN(bundle->answer_id, FindToken(tokenizer, "answer_token", c.answer_token));
  ASSIGN_OR_RETURN(bundle->document_id, FindToken(tokenizer, "document_token", c.document_token));
  if (c.told_penalty > 0) {
    ASSIGN_OR_RETURN(bundle->line_end_id, FindToken(tokenizer, "line_end_token", c.line_end_token));
  }
  for (const auto& [name, shape] : expected) {
    int64_t elements = 1;
    for (int64_t length : shape) elements *= length;
    bundle->parameter_count += elements;
  }
  const absl::Span<const uint8_t> weights = bundle->weights->contents();
  uint64_t hash = Fingerprint64(config_text, 0);
  hash = Fingerprint64({reinterpret_cast<const char*>(weights.data()), weights.size()}, hash);
  bundle->fingerprint = Fingerprint64(tokenizer_text, hash);
  return bundle;
}

}  // namespace mneme
