#include "model/bundle.h"

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/bundle_files.h"
#include "tests/model/spm_models.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kShipped[] = MNEME_SOURCE_DIR "/models/mneme-small";

class BundleTest : public ::testing::Test {
 protected:
  ~BundleTest() override { std::filesystem::remove_all(folder_); }

  absl::StatusOr<std::unique_ptr<Bundle>> Load(const BundleFiles& files) {
    files.Write(folder_);
    return LoadBundle(folder_);
  }

  void ExpectRefused(const BundleFiles& files, const std::string& message) {
    const absl::Status status = Load(files).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }

  const std::string folder_ =
      absl::StrCat(testing::TempDir(), "/bundle_", getpid(), "_",
                   ::testing::UnitTest::GetInstance()->current_test_info()->name());
};

TEST_F(BundleTest, ShippedBundleLoads) {
  const auto bundle = LoadBundle(kShipped);
  ASSERT_TRUE(bundle.ok()) << bundle.status();
  EXPECT_EQ((*bundle)->parameter_count, 19'372'410);
  EXPECT_EQ((*bundle)->weights->tensors().at("lower.0.in_proj.weight").dtype, DType::kI8);
  EXPECT_EQ((*bundle)->question_id, 3);
  EXPECT_EQ((*bundle)->answer_id, 4);
  EXPECT_EQ((*bundle)->pad_id, 5);
  EXPECT_EQ((*bundle)->document_id, 5);
  EXPECT_EQ((*bundle)->fingerprint, LoadBundle(kShipped).value()->fingerprint);
}

TEST_F(BundleTest, ExpectedTensorsOfTheShippedConfig) {
  const auto config =
      ParseModelConfig(FileContents(absl::StrCat(kShipped, "/config.json"))).value();
  const auto expected = ExpectedTensors(config);
  EXPECT_THAT(expected.at("lower.5.in_proj.weight"), ElementsAre(1676, 384));
  EXPECT_THAT(expected.at("upper.0.conv1d_weight"), ElementsAre(4, 896));
  EXPECT_THAT(expected.at("hsa.2.o_proj.weight"), ElementsAre(384, 384));
  EXPECT_THAT(expected.at("retrieval_log_scale"), ElementsAre());
  EXPECT_FALSE(expected.contains("hsa.3.o_proj.weight"));
  EXPECT_FALSE(expected.contains("upper.6.D"));
  EXPECT_THAT(expected.at("look.q_proj.weight"), ElementsAre(576, 384));
}

TEST_F(BundleTest, ASecondLookHasTensorsOfItsOwn) {
  BundleFiles with_look = SmallBundle("I8");
  with_look.config.replace(with_look.config.find("\"expand\""), 0, "\"look_heads\": 3, ");
  const auto expected = ExpectedTensors(ParseModelConfig(with_look.config).value());
  EXPECT_THAT(expected.at("look.norm.weight"), ElementsAre(16));
  EXPECT_THAT(expected.at("look.q_proj.weight"), ElementsAre(24, 16));
  EXPECT_THAT(expected.at("look.q_norm.weight"), ElementsAre(8));
  EXPECT_THAT(expected.at("look.head_weight"), ElementsAre(3));
  ExpectRefused(with_look,
                "\"look.head_weight\" is missing, config.json asks for it with shape [3]");
  BundleFiles files = with_look;
  files.tensors["look.norm.weight"] = {"F32", {16}, std::string(64, '\0')};
  files.tensors["look.q_proj.weight"] = {"I8", {24, 16}, std::string(24 * 16, '\0')};
  files.tensors["look.q_proj.weight.scale"] = {"F32", {24}, std::string(4 * 24, '\0')};
  files.tensors["look.q_norm.weight"] = {"F32", {8}, std::string(32, '\0')};
  files.tensors["look.head_weight"] = {"F32", {3}, std::string(12, '\0')};
  const auto loaded = Load(files);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ((*loaded)->config.look_heads, 3);
  for (const auto& [name, tensor] : files.tensors) {
    if (name.rfind("look.", 0) != 0) continue;
    BundleFiles less = files;
    less.tensors.erase(name);
    ExpectRefused(less, absl::StrCat("\"", name, "\" is missing"));
    // Where look_heads says that there are none.
    BundleFiles more = SmallBundle("I8");
    more.tensors[name] = tensor;
    ExpectRefused(more, absl::StrCat("\"", name, "\" with shape ["));
  }
}

TEST_F(BundleTest, QuantisedAndPlainMatricesLoad) {
  for (const char* dtype : {"I8", "F32", "BF16"}) {
    const auto bundle = Load(SmallBundle(dtype));
    EXPECT_TRUE(bundle.ok()) << dtype << ": " << bundle.status();
  }
}

TEST_F(BundleTest, FingerprintChangesWithEachFile) {
  BundleFiles files = SmallBundle("I8");
  const uint64_t fingerprint = Load(files).value()->fingerprint;
  EXPECT_EQ(Load(files).value()->fingerprint, fingerprint);
  files.config += " ";
  EXPECT_NE(Load(files).value()->fingerprint, fingerprint);
  files = SmallBundle("I8");
  files.tensors["norm.weight"].data[3] = 1;
  EXPECT_NE(Load(files).value()->fingerprint, fingerprint);
  files = SmallBundle("I8");
  files.tokenizer = ModelOf(WithSpecialPieces({{"<q>", 0, BpePiece::Type::kUserDefined},
                                               {"<a>", 0, BpePiece::Type::kUserDefined},
                                               {"<doc>", 0, BpePiece::Type::kUserDefined},
                                               {"\u2581", -1},
                                               {"b", -2}}))
                        .SerializeAsString();
  EXPECT_NE(Load(files).value()->fingerprint, fingerprint);
}

TEST_F(BundleTest, MissingFilesAreNamed) {
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.model"}) {
    SmallBundle("I8").Write(folder_);
    std::filesystem::remove(absl::StrCat(folder_, "/", name));
    const absl::Status status = LoadBundle(folder_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat(folder_, "/", name)));
  }
}

TEST_F(BundleTest, WhatIsNoBundleIsRefused) {
  EXPECT_EQ(LoadBundle(folder_ + "/nowhere").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(LoadBundle("").status().code(), absl::StatusCode::kNotFound);
  // A folder of another kind, a file, and folders where the files should be.
  EXPECT_EQ(LoadBundle(MNEME_SOURCE_DIR "/model").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(LoadBundle(MNEME_SOURCE_DIR "/CMakeLists.txt").ok());
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.model"}) {
    SmallBundle("I8").Write(folder_);
    std::filesystem::remove(absl::StrCat(folder_, "/", name));
    std::filesystem::create_directory(absl::StrCat(folder_, "/", name));
    const absl::Status status = LoadBundle(folder_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("not a regular file"));
    std::filesystem::remove_all(folder_);
  }
}

TEST_F(BundleTest, TruncatedWeightsAreRefused) {
  SmallBundle("I8").Write(folder_);
  const std::string path = folder_ + "/model.safetensors";
  const std::string whole = FileContents(path);
  const size_t header_bytes = static_cast<unsigned char>(whole[0]) |
                              static_cast<size_t>(static_cast<unsigned char>(whole[1])) << 8;
  for (size_t bytes :
       {size_t{0}, size_t{4}, size_t{8}, size_t{100}, 7 + header_bytes, 8 + header_bytes,
        8 + header_bytes + 1, whole.size() / 2, whole.size() - 1}) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << whole.substr(0, bytes);
    const absl::Status status = LoadBundle(folder_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bytes << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors"));
  }
}

TEST_F(BundleTest, TruncatedTokenizerAndConfigAreRefused) {
  BundleFiles files = SmallBundle("I8");
  files.tokenizer.resize(files.tokenizer.size() / 2);
  ExpectRefused(files, "tokenizer.model");
  files = SmallBundle("I8");
  files.config.resize(files.config.size() / 2);
  ExpectRefused(files, "config.json: not valid JSON");
}

TEST_F(BundleTest, EveryMissingTensorIsNamed) {
  const BundleFiles good = SmallBundle("I8");
  for (const auto& [name, tensor] : good.tensors) {
    BundleFiles files = good;
    files.tensors.erase(name);
    ExpectRefused(files, absl::StrCat("\"", name, "\" is missing"));
  }
}

TEST_F(BundleTest, EveryWrongShapeIsNamedWithBothShapes) {
  const BundleFiles good = SmallBundle("I8");
  for (const auto& [name, tensor] : good.tensors) {
    BundleFiles files = good;
    TestTensor& changed = files.tensors[name];
    const std::string element(changed.dtype == "I8" ? 1 : 4, '\0');
    changed.shape = {3};
    changed.data = element + element + element;
    ExpectRefused(files, absl::StrCat("\"", name, "\" has shape [3], config.json asks for ["));
  }
  BundleFiles files = good;
  TestTensor& matrix = files.tensors["lower.0.out_proj.weight"];
  matrix.shape = {32, 16};
  ExpectRefused(files,
                "\"lower.0.out_proj.weight\" has shape [32, 16], config.json asks for [16, 32]");
}

TEST_F(BundleTest, UnexpectedTensorIsNamed) {
  BundleFiles files = SmallBundle("I8");
  files.tensors["lower.1.D"] = files.tensors["lower.0.D"];
  ExpectRefused(files, "\"lower.1.D\" with shape [4] is unexpected");
  files = SmallBundle("I8");
  files.tensors["norm.weight.scale"] = {"F32", {1}, std::string(4, '\0')};
  ExpectRefused(files, "\"norm.weight.scale\" with shape [1] is unexpected");
  files = SmallBundle("F32");
  files.tensors["embedding.weight.scale"] = {"F32", {264}, std::string(4 * 264, '\0')};
  ExpectRefused(files, "\"embedding.weight.scale\" is unexpected: its matrix is f32, not i8");
}

TEST_F(BundleTest, WrongDtypeIsNamed) {
  BundleFiles files = SmallBundle("I8");
  files.tensors["norm.weight"] = {"BF16", {16}, std::string(32, '\0')};
  ExpectRefused(files, "\"norm.weight\" is bf16, expected f32");
  files = SmallBundle("I8");
  files.tensors["embedding.weight"] = {"I32", {264, 16}, std::string(4 * 264 * 16, '\0')};
  ExpectRefused(files, "\"embedding.weight\" is i32, expected i8, f32 or bf16");
  files = SmallBundle("I8");
  files.tensors["embedding.weight.scale"] = {"I32", {264}, std::string(4 * 264, '\0')};
  ExpectRefused(files, "\"embedding.weight.scale\" is i32, expected f32");
}

TEST_F(BundleTest, NumberThatIsNotFiniteIsNamed) {
  for (const float value : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    for (const char* name : {"lower.0.D", "embedding.weight.scale"}) {
      BundleFiles files = SmallBundle("I8");
      std::memcpy(files.tensors[name].data.data() + 4, &value, 4);
      ExpectRefused(files, absl::StrCat("\"", name, "\" holds ", value, " at element 1"));
    }
  }
}

TEST_F(BundleTest, NumberThatIsNotFiniteInAMatrixIsNamed) {
  const std::string matrix = "lower.0.in_proj.weight";
  for (const float value : {std::nanf(""), -std::numeric_limits<float>::infinity()}) {
    const std::string message = absl::StrCat("\"", matrix, "\" holds ", value, " at element ");
    BundleFiles files = SmallBundle("F32");
    std::string& single = files.tensors[matrix].data;
    std::memcpy(single.data() + 4 * 5, &value, 4);
    ExpectRefused(files, message + "5");
    files = SmallBundle("BF16");
    std::string& half = files.tensors[matrix].data;
    const Bf16 rounded = FloatToBf16(value);
    std::memcpy(half.data() + half.size() - 2, &rounded, 2);
    ExpectRefused(files, absl::StrCat(message, half.size() / 2 - 1));
  }
}

TEST_F(BundleTest, SpecialTokenOutsideTheVocabularyIsNamed) {
  BundleFiles files = SmallBundle("I8");
  files.config.replace(files.config.find("\"<a>\""), 5, "\"<answer>\"");
  ExpectRefused(files, "answer_token \"<answer>\" is not in the vocabulary of tokenizer.model");
}

TEST_F(BundleTest, LineEndTokenIsLookedUpWhereItIsNeeded) {
  BundleFiles files = SmallBundle("I8");
  EXPECT_EQ(Load(files).value()->line_end_id, -1);
  files.config.replace(files.config.find("\"pad_token\""), 0,
                       "\"told_penalty\": 8, \"line_end_token\": \"<0x0A>\", ");
  const auto bundle = Load(files);
  ASSERT_TRUE(bundle.ok()) << bundle.status();
  EXPECT_EQ((*bundle)->line_end_id, (*bundle)->tokenizer->PieceToId("<0x0A>"));
  EXPECT_GE((*bundle)->line_end_id, 0);
  files.config.replace(files.config.find("<0x0A>"), 6, "<line>");
  ExpectRefused(files, "line_end_token \"<line>\" is not in the vocabulary of tokenizer.model");
}

TEST_F(BundleTest, MorePiecesThanTheNetworkKnowsAreRefused) {
  BundleFiles files = SmallBundle("I8");
  files.tokenizer = ShippedModel();
  ExpectRefused(files, "vocab_size is 264, but tokenizer.model has 8192 pieces");
}

TEST_F(BundleTest, UnsupportedTokenizerKeepsItsCode) {
  BundleFiles files = SmallBundle("I8");
  spm::ModelProto model;
  ASSERT_TRUE(model.ParseFromString(files.tokenizer));
  model.mutable_trainer_spec()->set_model_type(spm::TrainerSpec::UNIGRAM);
  files.tokenizer = model.SerializeAsString();
  EXPECT_EQ(Load(files).status().code(), absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace mneme
