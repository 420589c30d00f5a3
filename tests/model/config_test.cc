#include "model/config.h"

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/spm_models.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

nlohmann::json Shipped() {
  return nlohmann::json::parse(FileContents(MNEME_SOURCE_DIR "/models/mneme-small/config.json"));
}

void ExpectRefused(const std::string& json, const std::string& message) {
  const absl::Status status = ParseModelConfig(json).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << json;
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

template <typename Value>
void ExpectValueRefused(const std::string& field, const Value& value, const std::string& message) {
  nlohmann::json json = Shipped();
  json[field] = value;
  ExpectRefused(json.dump(), message);
}

TEST(ModelConfigTest, ShippedConfigIsRead) {
  const ModelConfig config = ParseModelConfig(Shipped().dump()).value();
  EXPECT_EQ(config.vocab_size, 8192);
  EXPECT_EQ(config.inner(), 768);
  EXPECT_EQ(config.ssm_heads(), 12);
  EXPECT_EQ(config.conv_dim(), 896);
  EXPECT_EQ(config.in_proj_rows(), 1676);
  EXPECT_EQ(config.head_dim(), 64);
  EXPECT_EQ(config.hsa_layers(), 3);
  EXPECT_EQ(config.chunks_per_segment(), 64);
  EXPECT_DOUBLE_EQ(config.rope_base, 10000.0);
  EXPECT_DOUBLE_EQ(config.norm_eps, 1e-5);
  EXPECT_EQ(config.pad_token, "<doc>");
}

TEST(ModelConfigTest, TheHaloIsReadAndIsNoneWhereItIsMissing) {
  nlohmann::json json = Shipped();
  json.erase("encoder_halo");
  const ModelConfig without = ParseModelConfig(json.dump()).value();
  EXPECT_EQ(without.encoder_halo, 0);
  EXPECT_EQ(without.encoder_rows(), 65);
  EXPECT_EQ(without.halo_chunks(), 0);
  for (const auto& [halo, chunks] :
       {std::pair(0, 0), {1, 1}, {31, 1}, {64, 1}, {65, 2}, {1024, 16}}) {
    json["encoder_halo"] = halo;
    const auto config = ParseModelConfig(json.dump());
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->encoder_halo, halo);
    EXPECT_EQ(config->encoder_rows(), 65 + halo);
    EXPECT_EQ(config->halo_chunks(), chunks);
  }
}

TEST(ModelConfigTest, Ramba370mIsRead) {
  nlohmann::json json = Shipped();
  json.update({{"d_model", 1024},
               {"n_lower_layers", 24},
               {"n_upper_layers", 24},
               {"n_heads", 16},
               {"landmark_dim", 1024},
               {"ssm_state_size", 128},
               {"vocab_size", 50304}});
  const auto config = ParseModelConfig(json.dump());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->head_dim(), 64);
}

TEST(ModelConfigTest, MissingFieldIsNamed) {
  nlohmann::json whole = Shipped();
  whole.update({{"told_penalty", 8}, {"line_end_token", "<0x0A>"}});
  for (const auto& [key, value] : whole.items()) {
    nlohmann::json json = whole;
    json.erase(key);
    if (key == "told_penalty") json.erase("line_end_token");
    if (key == "model_type" || key == "encoder_halo" || key == "look_heads" ||
        key == "newest_margin" || key == "told_penalty") {
      EXPECT_TRUE(ParseModelConfig(json.dump()).ok());
    } else {
      ExpectRefused(json.dump(), key + " is missing");
    }
  }
}

// A whole number from 0 to `most` that may be missing, which is 0.
void ExpectOptional(const std::string& field, int ModelConfig::*member, int most) {
  nlohmann::json json = Shipped();
  json.erase(field);
  EXPECT_EQ(ParseModelConfig(json.dump()).value().*member, 0);
  for (const int value : {0, 1, 2, 6, most}) {
    json[field] = value;
    EXPECT_EQ(ParseModelConfig(json.dump()).value().*member, value);
  }
  const std::string range = ", expected 0 to " + std::to_string(most);
  ExpectValueRefused(field, -1, field + " is -1" + range);
  ExpectValueRefused(field, most + 1, field + " is " + std::to_string(most + 1) + range);
  ExpectValueRefused(field, 2.5, field + " is 2.5, expected a whole number");
  ExpectValueRefused(field, nullptr, field + " is null, expected a whole number");
}

TEST(ModelConfigTest, LookHeadsMayBeMissing) {
  ExpectOptional("look_heads", &ModelConfig::look_heads, 256);
}

TEST(ModelConfigTest, NewestMarginMayBeMissing) {
  ExpectOptional("newest_margin", &ModelConfig::newest_margin, 64);
}

TEST(ModelConfigTest, ToldPenaltyAndLineEndTokenStandTogether) {
  nlohmann::json json = Shipped();
  json.erase("told_penalty");
  json.erase("line_end_token");
  for (const bool is_named : {false, true}) {
    nlohmann::json none = json;
    if (is_named) none["told_penalty"] = 0;
    const ModelConfig config = ParseModelConfig(none.dump()).value();
    EXPECT_EQ(config.told_penalty, 0);
    EXPECT_EQ(config.line_end_token, "");
    none["line_end_token"] = "<0x0A>";
    ExpectRefused(none.dump(), "line_end_token is there, but told_penalty is 0");
  }
  for (const int penalty : {1, 8, 64}) {
    json["told_penalty"] = penalty;
    json.erase("line_end_token");
    ExpectRefused(json.dump(),
                  "line_end_token is missing, but told_penalty is " + std::to_string(penalty));
    json["line_end_token"] = "<0x0A>";
    const ModelConfig config = ParseModelConfig(json.dump()).value();
    EXPECT_EQ(config.told_penalty, penalty);
    EXPECT_EQ(config.line_end_token, "<0x0A>");
  }
}

TEST(ModelConfigTest, ToldPenaltyOutOfRangeIsNamedWithItsLimit) {
  ExpectValueRefused("told_penalty", -1, "told_penalty is -1, expected 0 to 64");
  ExpectValueRefused("told_penalty", 65, "told_penalty is 65, expected 0 to 64");
  ExpectValueRefused("told_penalty", 2.5, "told_penalty is 2.5, expected a whole number");
  ExpectValueRefused("told_penalty", nullptr, "told_penalty is null, expected a whole number");
  ExpectValueRefused("line_end_token", "", "line_end_token is empty");
  ExpectValueRefused("line_end_token", 10, "line_end_token is of type number");
}

TEST(ModelConfigTest, UnknownFieldIsNamed) {
  ExpectValueRefused("n_experts", 8, "\"n_experts\" is not a known field");
}

TEST(ModelConfigTest, FieldThatAppearsTwiceIsNamed) {
  std::string json = Shipped().dump();
  json.insert(json.size() - 1, ",\"d_model\":512");
  ExpectRefused(json, "key \"d_model\" appears twice");
}

TEST(ModelConfigTest, MistypedFieldIsNamedWithItsValue) {
  ExpectValueRefused("d_model", "384", "d_model is \"384\", expected a whole number");
  ExpectValueRefused("d_model", 384.5, "d_model is 384.5, expected a whole number");
  ExpectValueRefused("encoder_halo", "31", "encoder_halo is \"31\", expected a whole number");
  ExpectValueRefused("encoder_halo", nullptr, "encoder_halo is null, expected a whole number");
  ExpectValueRefused("encoder_halo", 31.0, "encoder_halo is 31.0, expected a whole number");
  ExpectValueRefused("d_model", nullptr, "d_model is null");
  ExpectValueRefused("d_model", std::vector<int>{384}, "d_model is of type array");
  ExpectValueRefused("norm_eps", "small", "norm_eps is of type string");
  ExpectValueRefused("pad_token", 5, "pad_token is of type number");
  ExpectValueRefused("pad_token", "", "pad_token is empty");
  ExpectValueRefused("model_type", "llama", "model_type is \"llama\", expected \"ramba\"");
}

TEST(ModelConfigTest, DeeplyNestedValueIsNamedByItsType) {
  constexpr int kDepth = 1'000'000;
  const std::string nested = std::string(kDepth, '[') + std::string(kDepth, ']');
  for (const std::string field :
       {"d_model", "encoder_halo", "norm_eps", "pad_token", "model_type"}) {
    nlohmann::json json = Shipped();
    json[field] = "nested";
    std::string text = json.dump();
    text.replace(text.find("\"nested\""), 8, nested);
    ExpectRefused(text, field + " is of type array, expected ");
  }
  ExpectValueRefused("model_type", nlohmann::json::object(), "model_type is of type object");
}

TEST(ModelConfigTest, SizeOutOfRangeIsNamedWithItsLimit) {
  ExpectValueRefused("d_model", 0, "d_model is 0, expected 1 to 16384");
  ExpectValueRefused("n_heads", -6, "n_heads is -6, expected 1 to 256");
  ExpectValueRefused("encoder_halo", -1, "encoder_halo is -1, expected 0 to 1024");
  ExpectValueRefused("encoder_halo", 1025, "encoder_halo is 1025, expected 0 to 1024");
  ExpectValueRefused("vocab_size", 1 << 30, "vocab_size is 1073741824, expected 1 to 1048576");
  ExpectValueRefused("vocab_size", ~uint64_t{0}, "vocab_size is 18446744073709551615");
  ExpectValueRefused("segment_size", 1 << 20, "segment_size is 1048576");
  ExpectValueRefused("rope_base", 0, "rope_base is 0, expected 1e-30 to 1e+12");
  ExpectValueRefused("rope_base", -1.0, "rope_base is -1.0");
  ExpectValueRefused("rope_base", 1e-320, "rope_base is 1e-320, expected 1e-30 to 1e+12");
  ExpectValueRefused("norm_eps", 2.0, "norm_eps is 2.0, expected 1e-30 to 1");
  // As floats these are 0, or so small that arithmetic may take them for it.
  ExpectValueRefused("norm_eps", 1e-46, "norm_eps is 1e-46, expected 1e-30 to 1");
  ExpectValueRefused("norm_eps", 1e-38, "norm_eps is 1e-38, expected 1e-30 to 1");
  nlohmann::json least = Shipped();
  least["norm_eps"] = 1e-30;
  EXPECT_TRUE(ParseModelConfig(least.dump()).ok());
}

TEST(ModelConfigTest, SizesThatDoNotFitEachOtherAreNamed) {
  ExpectValueRefused("n_heads", 5, "d_model (384) is not a multiple of n_heads (5)");
  ExpectValueRefused("ssm_head_dim", 100,
                     "expand * d_model (768) is not a multiple of ssm_head_dim (100)");
  ExpectValueRefused("hsa_every", 4, "n_upper_layers (6) is not a multiple of hsa_every (4)");
  ExpectValueRefused("chunk_size", 100,
                     "segment_size (4096) is not a multiple of chunk_size (100)");
  ExpectValueRefused("n_heads", 128, "d_model / n_heads is 3");
  ExpectValueRefused("n_kv_heads", 2, "n_kv_heads is 2, only 1 is supported");
}

TEST(ModelConfigTest, WhatIsNoJsonObjectIsRefused) {
  ExpectRefused("", "not valid JSON at byte 1 of 0");
  ExpectRefused("[1]", "expected a JSON object, found array");
  ExpectRefused("null", "expected a JSON object, found null");
  ExpectRefused("{\"rope_base\": 1e999}", "holds a number out of range");
  ExpectRefused(std::string(100'000, '['), "not valid JSON");
  const std::string whole = Shipped().dump();
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    ASSERT_FALSE(ParseModelConfig(whole.substr(0, bytes)).ok()) << bytes;
  }
}

}  // namespace
}  // namespace mneme
