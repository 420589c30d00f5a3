// The shape checks of operations, and the choice of a backend by name.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/backend.h"

namespace mneme {
namespace {

using testing::HasSubstr;

class OpsTest : public testing::Test {
 protected:
  std::unique_ptr<Backend> backend_ = CreateBackend("cpu", {.threads = 1}).value();
  float floats_[64] = {};
};

TEST_F(OpsTest, AShapeThatCannotBeIsNamedWithItsValue) {
  const absl::Status status = backend_->RmsNorm({.in = floats_,
                                                 .in_stride = 3,
                                                 .weight = floats_,
                                                 .rows = 2,
                                                 .width = 4,
                                                 .out = floats_,
                                                 .out_stride = 4});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("RmsNorm: in_stride must be at least 4, got 3"));
}

TEST_F(OpsTest, ChunksThatSeeWhatFollowsNeedTheEndsOfTheirSequences) {
  ChunkInputParams p = {.hidden = floats_,
                        .hidden_stride = 4,
                        .weight = floats_,
                        .cls = floats_,
                        .chunks = 1,
                        .chunk_tokens = 2,
                        .halo_tokens = 1,
                        .width = 4,
                        .out = floats_ + 32,
                        .out_stride = 4};
  EXPECT_THAT(std::string(backend_->ChunkInput(p).message()), HasSubstr("sequence_ends is null"));
  const int32_t end = 2;
  p.sequence_ends = &end;
  EXPECT_TRUE(backend_->ChunkInput(p).ok());
  p.halo_tokens = -1;
  EXPECT_THAT(std::string(backend_->ChunkInput(p).message()),
              HasSubstr("halo_tokens must be at least 0, got -1"));
}

TEST_F(OpsTest, PagesNeedAllTokensInTheirGroupOfRows) {
  EXPECT_THAT(std::string(backend_
                              ->WritePages({.k = floats_,
                                            .v = floats_,
                                            .stride = 4,
                                            .k_norm_weight = floats_,
                                            .chunks = 1,
                                            .chunk_tokens = 4,
                                            .group_rows = 3,
                                            .head_dim = 4,
                                            .pages = floats_ + 32})
                              .message()),
              HasSubstr("WritePages: group_rows must be at least 4, got 3"));
}

TEST_F(OpsTest, NegativeRowsAreRefused) {
  EXPECT_EQ(backend_
                ->SwiGlu({.gate_up = floats_,
                          .gate_up_stride = 8,
                          .rows = -1,
                          .width = 4,
                          .out = floats_,
                          .out_stride = 4})
                .code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(OpsTest, NullIsRefusedWhereThereIsSomethingToRead) {
  RmsNormParams p = {
      .in_stride = 4, .weight = floats_, .rows = 1, .width = 4, .out = floats_, .out_stride = 4};
  EXPECT_EQ(backend_->RmsNorm(p).code(), absl::StatusCode::kInvalidArgument);
  p.rows = 0;
  EXPECT_TRUE(backend_->RmsNorm(p).ok());
}

TEST_F(OpsTest, AnOperandOfAnotherTypeThanTheWeightsIsRefused) {
  const WeightSource source = {.rows = 4, .cols = 4, .data = floats_};
  const auto weight = backend_->PackWeight({source}, {.compute_dtype = DType::kBf16}).value();
  EXPECT_EQ(
      backend_
          ->Matmul({.a = floats_, .a_stride = 4, .rows = 1, .weight = weight.get(), .out = floats_})
          .code(),
      absl::StatusCode::kInvalidArgument);
}

TEST_F(OpsTest, PartsOfDifferentWidthsDoNotStack) {
  const WeightSource a = {.rows = 4, .cols = 4, .data = floats_},
                     b = {.rows = 4, .cols = 5, .data = floats_};
  EXPECT_EQ(backend_->PackWeight({a, b}, {}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend_->PackWeight({}, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(OpsTest, SequencesMustCoverTheRowsInOrder) {
  const SequenceRows sequences[] = {{.row_begin = 1, .row_count = 1, .state = floats_}};
  SsdParams p = {.xbc = floats_,
                 .xbc_stride = 3,
                 .dt = floats_,
                 .dt_stride = 1,
                 .dt_bias = floats_,
                 .a_log = floats_,
                 .d_skip = floats_,
                 .heads = 1,
                 .head_dim = 1,
                 .state_size = 1,
                 .sequences = sequences,
                 .sequence_count = 1,
                 .rows = 1,
                 .y = floats_,
                 .y_stride = 1};
  EXPECT_EQ(backend_->Ssd(p).code(), absl::StatusCode::kInvalidArgument);
  const SequenceRows two_rows[] = {{.row_begin = 0, .row_count = 2, .state = floats_}};
  p.sequences = two_rows;
  p.rows = 2;
  EXPECT_TRUE(backend_->Ssd(p).ok());
  EXPECT_EQ(backend_->SsmStep(p).code(), absl::StatusCode::kInvalidArgument);  // one row a sequence
}

TEST_F(OpsTest, ScanRefusesTooManyPlaces) {
  int64_t index = 0;
  LandmarkTopKParams p = {
      .queries = floats_, .n_queries = 1, .dim = 4, .k = 0, .indices = &index, .scores = floats_};
  EXPECT_EQ(backend_->LandmarkTopK(p).code(), absl::StatusCode::kInvalidArgument);
  p.k = kLandmarkTopKMax + 1;
  EXPECT_EQ(backend_->LandmarkTopK(p).code(), absl::StatusCode::kInvalidArgument);
}

TEST(CreateBackendTest, DevicesByName) {
  EXPECT_EQ(CreateBackend("cpu", {}).value()->name(), "cpu");
  EXPECT_TRUE(CreateBackend("auto", {}).ok());
  EXPECT_EQ(CreateBackend("tpu", {}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CreateBackend("cpu", {.threads = -1}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(CreateBackendTest, BuffersHoldWhatIsCopiedIn) {
  const auto backend = CreateBackend("cpu", {.threads = 1}).value();
  Buffer buffer = backend->Allocate(12).value();
  const float in[3] = {1, 2, 3};
  float out[3] = {};
  ASSERT_TRUE(backend->CopyIn(buffer.data(), in, 12).ok());
  ASSERT_TRUE(backend->Zero(buffer.as<char>(4), 4).ok());
  const Buffer moved = std::move(buffer);
  ASSERT_TRUE(backend->CopyOut(out, moved.data(), 12).ok());
  EXPECT_THAT(out, testing::ElementsAre(1, 0, 3));
  EXPECT_EQ(backend->Allocate(-1).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mneme
