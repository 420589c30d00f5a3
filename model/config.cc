#include "model/config.h"

#include <cmath>
#include <cstdint>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/json_object.h"

namespace mneme {
namespace {

// A size of the network and the values that we accept.
struct SizeField {
  const char* name;
  int ModelConfig::*member;
  int max;
  int min = 1;
  bool optional = false;  // where it is missing: as ModelConfig has it
};

// The limits keep every product of two sizes, and the bytes of any one tensor, far from overflow.
constexpr SizeField kSizeFields[] = {
    {"vocab_size", &ModelConfig::vocab_size, 1 << 20},
    {"d_model", &ModelConfig::d_model, 1 << 14},
    {"n_lower_layers", &ModelConfig::n_lower_layers, 512},
    {"n_upper_layers", &ModelConfig::n_upper_layers, 512},
    {"expand", &ModelConfig::expand, 8},
    {"ssm_head_dim", &ModelConfig::ssm_head_dim, 1024},
    {"ssm_state_size", &ModelConfig::ssm_state_size, 1024},
    {"conv_kernel", &ModelConfig::conv_kernel, 16},
    {"ssm_block", &ModelConfig::ssm_block, 1 << 16},
    {"n_heads", &ModelConfig::n_heads, 256},
    {"n_kv_heads", &ModelConfig::n_kv_heads, 256},
    {"chunk_size", &ModelConfig::chunk_size, 1024},
    {"chunks_per_read", &ModelConfig::chunks_per_read, 1024},
    {"landmark_dim", &ModelConfig::landmark_dim, 1 << 14},
    {"encoder_layers", &ModelConfig::encoder_layers, 64},
    {"encoder_ffn", &ModelConfig::encoder_ffn, 1 << 16},
    {"encoder_halo", &ModelConfig::encoder_halo, 1024, 0, /*optional=*/true},
    {"hsa_every", &ModelConfig::hsa_every, 512},
    {"look_heads", &ModelConfig::look_heads, 256, 0, /*optional=*/true},
    {"newest_margin", &ModelConfig::newest_margin, 64, 0, /*optional=*/true},
    {"told_penalty", &ModelConfig::told_penalty, 64, 0, /*optional=*/true},
    {"segment_size", &ModelConfig::segment_size, 1 << 16},
};

struct RealField {
  const char* name;
  double ModelConfig::*member;
  double min;
  double max;
};

// The least ones are floats, and stay so when powers or a root of them are inverted.
constexpr RealField kRealFields[] = {
    {"rope_base", &ModelConfig::rope_base, 1e-30, 1e12},
    {"norm_eps", &ModelConfig::norm_eps, 1e-30, 1.0},
};

struct TextField {
  const char* name;
  std::string ModelConfig::*member;
  bool optional = false;  // where it is missing: empty
};

const TextField kTextFields[] = {
    {"pad_token", &ModelConfig::pad_token},
    {"question_token", &ModelConfig::question_token},
    {"answer_token", &ModelConfig::answer_token},
    {"document_token", &ModelConfig::document_token},
    {"line_end_token", &ModelConfig::line_end_token, /*optional=*/true},
};

absl::Status Invalid(absl::string_view field, absl::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat("config.json: ", field, " ", problem));
}

// A value in a message; of one that others nest in, its type.
std::string ValueText(const nlohmann::json& value) {
  if (value.is_structured()) return absl::StrCat("of type ", value.type_name());
  return value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

absl::Status ReadSize(const nlohmann::json& value, const SizeField& field, ModelConfig* config) {
  if (!value.is_number_integer()) {
    return Invalid(field.name, absl::StrCat("is ", ValueText(value), ", expected a whole number"));
  }
  // An unsigned number beyond int64 reads as negative here, and is refused all the same.
  const int64_t number = value.get<int64_t>();
  if (number < field.min || number > field.max) {
    return Invalid(field.name,
                   absl::StrCat("is ", value.dump(), ", expected ", field.min, " to ", field.max));
  }
  config->*field.member = static_cast<int>(number);
  return absl::OkStatus();
}

absl::Status ReadReal(const nlohmann::json& value, const RealField& field, ModelConfig* config) {
  if (!value.is_number()) {
    return Invalid(field.name,
                   absl::StrCat("is of type ", value.type_name(), ", expected a number"));
  }
  const double number = value.get<double>();
  if (number < field.min || number > field.max) {
    return Invalid(field.name,
                   absl::StrCat("is ", value.dump(), ", expected ", field.min, " to ", field.max));
  }
  config->*field.member = number;
  return absl::OkStatus();
}

absl::Status ReadText(const nlohmann::json& value, const TextField& field, ModelConfig* config) {
  if (!value.is_string() || value.get_ref<const std::string&>().empty()) {
    return Invalid(field.name, absl::StrCat("is ", value.is_string() ? "empty" : "of type ",
                                            value.is_string() ? "" : value.type_name(),
                                            ", expected a piece of the vocabulary"));
  }
  config->*field.member = value.get<std::string>();
  return absl::OkStatus();
}

absl::Status CheckDivides(absl::string_view whole_name, int whole, absl::string_view part_name,
                          int part) {
  if (whole % part == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("config.json: ", whole_name, " (", whole,
                                                 ") is not a multiple of ", part_name, " (", part,
                                                 ")"));
}

absl::Status CheckRelations(const ModelConfig& c) {
  RETURN_IF_ERROR(CheckDivides("expand * d_model", c.inner(), "ssm_head_dim", c.ssm_head_dim));
  RETURN_IF_ERROR(CheckDivides("d_model", c.d_model, "n_heads", c.n_heads));
  RETURN_IF_ERROR(CheckDivides("n_upper_layers", c.n_upper_layers, "hsa_every", c.hsa_every));
  RETURN_IF_ERROR(CheckDivides("segment_size", c.segment_size, "chunk_size", c.chunk_size));
  if (c.head_dim() % 2 != 0) {
    return Invalid(
        "d_model / n_heads",
        absl::StrCat("is ", c.head_dim(), ", but rotary positions need an even head width"));
  }
  if (c.n_kv_heads != 1) {
    return Invalid("n_kv_heads", absl::StrCat("is ", c.n_kv_heads, ", only 1 is supported"));
  }
  if ((c.told_penalty > 0) == c.line_end_token.empty()) {
    return Invalid("line_end_token",
                   absl::StrCat(c.line_end_token.empty() ? "is missing" : "is there",
                                ", but told_penalty is ", c.told_penalty));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view json) {
  ASSIGN_OR_RETURN(const nlohmann::json object, ParseJsonObject(json, "config.json"));
  ModelConfig config;
  std::set<std::string> known = {"model_type"};
  for (const SizeField& field : kSizeFields) {
    known.insert(field.name);
    const auto it = object.find(field.name);
    if (it == object.end() && field.optional) continue;
    if (it == object.end()) return Invalid(field.name, "is missing");
    RETURN_IF_ERROR(ReadSize(*it, field, &config));
  }
  for (const RealField& field : kRealFields) {
    known.insert(field.name);
    const auto it = object.find(field.name);
    if (it == object.end()) return Invalid(field.name, "is missing");
    RETURN_IF_ERROR(ReadReal(*it, field, &config));
  }
  for (const TextField& field : kTextFields) {
    known.insert(field.name);
    const auto it = object.find(field.name);
    if (it == object.end() && field.optional) continue;
    if (it == object.end()) return Invalid(field.name, "is missing");
    RETURN_IF_ERROR(ReadText(*it, field, &config));
  }
  for (const auto& [key, value] : object.items()) {
    if (!known.contains(key)) return Invalid(absl::StrCat("\"", key, "\""), "is not a known field");
  }
  if (const auto it = object.find("model_type"); it != object.end() && *it != "ramba") {
    return Invalid("model_type", absl::StrCat("is ", ValueText(*it), ", expected \"ramba\""));
  }
  RETURN_IF_ERROR(CheckRelations(config));
  return config;
}

}  // namespace mneme
