#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/bundle.h"
#include "tests/model/bundle_files.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<std::map<std::string, TensorView>> Parse(const std::string& file) {
  return ParseSafetensors({reinterpret_cast<const uint8_t*>(file.data()), file.size()});
}

// Length, header and data, as they lie in a file.
std::string File(const std::string& header, const std::string& data) {
  return SafetensorsPrefix(header.size()) + header + data;
}

void ExpectRefused(const std::string& file, const std::string& message) {
  const absl::Status status = Parse(file).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

// One tensor "t" with this description, in a file of 8 bytes of data.
void ExpectTensorRefused(const std::string& description, const std::string& message) {
  ExpectRefused(File("{\"t\":" + description + "}", "01234567"), message);
}

TEST(SafetensorsTest, TensorsAreRead) {
  const std::string file = File(
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[3],"data_offsets":[4,10]},)"
      R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
      R"("e":{"dtype":"I64","shape":[0,5],"data_offsets":[10,10]},)"
      R"("i":{"dtype":"I8","shape":[1,2],"data_offsets":[10,12]}}   )",
      "aaaabbccddii");
  const auto tensors = Parse(file).value();
  ASSERT_EQ(tensors.size(), 4u);
  EXPECT_EQ(tensors.at("a").dtype, DType::kF32);
  EXPECT_EQ(tensors.at("a").elements(), 1);
  EXPECT_EQ(tensors.at("b").dtype, DType::kBf16);
  EXPECT_THAT(tensors.at("b").shape, ElementsAre(3));
  EXPECT_THAT(tensors.at("b").data, ElementsAre('b', 'b', 'c', 'c', 'd', 'd'));
  EXPECT_EQ(tensors.at("e").elements(), 0);
  EXPECT_THAT(tensors.at("i").data, ElementsAre('i', 'i'));
}

TEST(SafetensorsTest, EveryTruncationIsRefused) {
  const std::string file =
      File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "01234567");
  ASSERT_TRUE(Parse(file).ok());
  for (size_t bytes = 0; bytes < file.size(); ++bytes) {
    ASSERT_EQ(Parse(file.substr(0, bytes)).status().code(), absl::StatusCode::kInvalidArgument)
        << bytes;
  }
}

TEST(SafetensorsTest, HeaderBeyondTheFileIsRefusedWithBothSizes) {
  ExpectRefused("", "0 bytes are too few");
  ExpectRefused(std::string(7, '\0'), "7 bytes are too few");
  ExpectRefused(SafetensorsPrefix(3) + "{}", "header of 3 bytes in a file of 10 bytes");
  ExpectRefused(SafetensorsPrefix(~uint64_t{0}) + "{}", "header of 18446744073709551615 bytes");
  ExpectRefused(SafetensorsPrefix(~uint64_t{7}) + "{}", "in a file of 10 bytes");
}

TEST(SafetensorsTest, HeaderThatIsNoJsonObjectIsRefused) {
  ExpectRefused(File("", ""), "safetensors header: not valid JSON");
  ExpectRefused(File("[]", ""), "expected a JSON object");
  ExpectRefused(File("{\"a\":", ""), "not valid JSON");
  ExpectRefused(File(R"({"a":{},"a":{}})", ""), "key \"a\" appears twice");
}

TEST(SafetensorsTest, BadDescriptionNamesTheTensor) {
  ExpectTensorRefused("7", "tensor \"t\": expected an object");
  ExpectTensorRefused(R"({"shape":[2],"data_offsets":[0,8]})", "tensor \"t\": has no dtype");
  ExpectTensorRefused(R"({"dtype":"F64","shape":[1],"data_offsets":[0,8]})",
                      "dtype \"F64\" is not one of");
  ExpectTensorRefused(R"({"dtype":"F32","data_offsets":[0,8]})", "has no shape");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})",
                      "dimension 0 of its shape");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[1,2.0],"data_offsets":[0,8]})",
                      "dimension 1 of its shape");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[2],"data_offsets":[0]})", "not a pair");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[2],"data_offsets":[-1,7]})", "not a pair");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1})",
                      "unknown key \"x\"");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]})",
                      "has 9 dimensions");
}

TEST(SafetensorsTest, SizesThatDoNotAgreeAreRefusedWithBoth) {
  ExpectTensorRefused(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})",
                      "shape [3] of F32 takes 12 bytes, data_offsets hold 8");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[4],"data_offsets":[0,16]})",
                      "leave the 8 bytes of data");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[0],"data_offsets":[8,4]})",
                      "leave the 8 bytes of data");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]})",
                      "overflow");
}

TEST(SafetensorsTest, OverlapsAndHolesAreRefused) {
  const auto two = [](const char* a, const char* b) {
    return File(absl::StrCat(R"({"a":{"dtype":"I8","shape":[4],"data_offsets":)", a,
                             R"(},"b":{"dtype":"I8","shape":[4],"data_offsets":)", b, "}}"),
                "0123456789");
  };
  ExpectRefused(two("[0,4]", "[3,7]"),
                "tensor \"b\": data begins at byte 3, inside the tensor before it");
  ExpectRefused(two("[0,4]", "[6,10]"), "tensor \"b\": data begins at byte 6, beyond the end of");
  ExpectRefused(two("[2,6]", "[6,10]"), "tensor \"a\": data begins at byte 2");
  ExpectRefused(two("[0,4]", "[4,8]"), "10 bytes of data, but the tensors cover only 8");
}

TEST(SafetensorsTest, FileThatCannotBeReadIsNamed) {
  const std::string folder = testing::TempDir();
  const absl::Status missing = SafetensorsFile::Open(folder + "/no_such.safetensors").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("no_such.safetensors"));
  const absl::Status directory = SafetensorsFile::Open(folder).status();
  EXPECT_EQ(directory.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(directory.message()), HasSubstr("not a regular file"));
  const std::string empty = folder + "/empty.safetensors";
  std::ofstream(empty).close();
  EXPECT_EQ(SafetensorsFile::Open(empty).status().code(), absl::StatusCode::kInvalidArgument);
  std::remove(empty.c_str());
}

}  // namespace
}  // namespace mneme
