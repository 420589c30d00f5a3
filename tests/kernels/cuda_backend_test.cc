// What the CUDA backend promises beyond its operations: limits of memory, order of copies, threads
// that hand memory to each other. Skips without a GPU; without the CUDA backend in the build, only
// the refusal is tested.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/backend.h"

namespace mneme {
namespace {

class CudaBackendTest : public testing::Test {
 protected:
  void SetUp() override { Open({}); }

  void Open(const CudaBackendOptions& options) {
    absl::StatusOr<std::unique_ptr<Backend>> backend = CreateCudaBackend(options);
    if (absl::IsFailedPrecondition(backend.status())) GTEST_SKIP() << backend.status();
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
  }

  Buffer Filled(const std::vector<float>& values) {
    const int64_t bytes = static_cast<int64_t>(values.size() * sizeof(float));
    Buffer buffer = backend_->Allocate(bytes).value();
    EXPECT_TRUE(backend_->CopyIn(buffer.data(), values.data(), bytes).ok());
    return buffer;
  }
  std::vector<float> Values(const Buffer& buffer) {
    std::vector<float> values(buffer.bytes() / sizeof(float));
    EXPECT_TRUE(backend_->CopyOut(values.data(), buffer.data(), buffer.bytes()).ok());
    return values;
  }

  std::unique_ptr<Backend> backend_;
};

std::vector<float> Numbers(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> values(count);
  for (float& v : values) v = uniform(random);
  return values;
}

TEST(CreateCudaBackendTest, OptionsThatCannotBeAreRefused) {
#if defined(MNEME_HAVE_CUDA)
  EXPECT_TRUE(absl::IsInvalidArgument(CreateCudaBackend({.passes = 0}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(CreateCudaBackend({.device_bytes_max = -1}).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(CreateCudaBackend({.device = 4096}).status()));
#else
  EXPECT_TRUE(absl::IsFailedPrecondition(CreateCudaBackend({}).status()));
#endif
}

TEST_F(CudaBackendTest, DescriptionNamesTheDevice) {
  EXPECT_EQ(backend_->name(), "cuda");
  EXPECT_EQ(backend_->description().rfind("cuda, ", 0), 0u) << backend_->description();
  std::printf("%s\n", backend_->description().c_str());
}

TEST_F(CudaBackendTest, CopiesOfAnySizeComeBack) {
  for (const int64_t count : {0, 1, 3, 1000, 131071, 131072, 131073, 3000001}) {
    const std::vector<float> values = Numbers(count, static_cast<uint32_t>(count));
    EXPECT_EQ(Values(Filled(values)), values) << count;
  }
}

// The source of a copy may change as soon as CopyIn returns.
TEST_F(CudaBackendTest, CopyInHasReadItsSource) {
  const int64_t count = 100000;
  std::vector<Buffer> buffers;
  std::vector<float> source(count);
  for (int i = 0; i < 40; ++i) {
    buffers.push_back(backend_->Allocate(count * 4).value());
    source.assign(count, static_cast<float>(i));
    // Work that keeps the stream busy, so that the copies are queued behind it.
    ASSERT_TRUE(backend_->Zero(buffers[0].data(), buffers[0].bytes()).ok());
    ASSERT_TRUE(backend_->CopyIn(buffers[i].data(), source.data(), count * 4).ok());
  }
  for (int i = 1; i < 40; ++i) {
    EXPECT_EQ(Values(buffers[i]), std::vector<float>(count, static_cast<float>(i)));
  }
}

TEST_F(CudaBackendTest, OperationsOfAThreadTakeEffectInOrder) {
  const std::vector<float> values = Numbers(1 << 20, 1);
  const Buffer first = Filled(values), second = Filled(Numbers(1 << 20, 2));
  ASSERT_TRUE(backend_->Copy(second.data(), first.data(), first.bytes()).ok());
  ASSERT_TRUE(backend_->Zero(first.data(), first.bytes()).ok());
  ASSERT_TRUE(backend_->Copy(first.as<void>(4096), second.data(), 4096).ok());
  EXPECT_EQ(Values(second), values);
  const std::vector<float> mixed = Values(first);
  EXPECT_EQ(mixed[0], 0.0f);
  EXPECT_EQ(mixed[1024], values[0]);
}

TEST_F(CudaBackendTest, WhatOneThreadCopiesOrZeroesAnotherSeesWhenTheCallReturns) {
  const int64_t count = 1 << 20;
  const Buffer buffer = Filled(std::vector<float>(count, 1.0f));
  for (int round = 0; round < 20; ++round) {
    const std::vector<float> values(count, static_cast<float>(round));
    std::thread writer([&] {
      if (round % 2 == 0) {
        EXPECT_TRUE(backend_->Zero(buffer.data(), buffer.bytes()).ok());
      } else {
        EXPECT_TRUE(backend_->CopyIn(buffer.data(), values.data(), count * 4).ok());
      }
    });
    writer.join();
    const std::vector<float> want = round % 2 == 0 ? std::vector<float>(count, 0.0f) : values;
    ASSERT_EQ(Values(buffer), want) << "round " << round;
  }
}

TEST_F(CudaBackendTest, ManyThreadsWorkSideBySide) {
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int id = 0; id < 8; ++id) {
    threads.emplace_back([&, id] {
      const std::vector<float> values = Numbers(20000, static_cast<uint32_t>(id));
      const std::vector<float> weight(200, 1.0f);
      for (int round = 0; round < 20; ++round) {
        const Buffer in = Filled(values), scale = Filled(weight), out = Filled(values);
        const RmsNormParams p = {.in = in.as<float>(),
                                 .in_stride = 200,
                                 .weight = scale.as<float>(),
                                 .eps = 1e-5f,
                                 .rows = 100,
                                 .width = 200,
                                 .out = out.data(),
                                 .out_stride = 200};
        if (!backend_->RmsNorm(p).ok()) ++wrong;
        const std::vector<float> normed = Values(out);
        for (int row = 0; row < 100; ++row) {
          double squares = 0;
          for (int i = 0; i < 200; ++i)
            squares += double{normed[row * 200 + i]} * normed[row * 200 + i];
          if (squares < 199 || squares > 201) ++wrong;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong.load(), 0);
}

TEST_F(CudaBackendTest, MemoryBeyondTheLimitIsRefusedAndComesBackWhenReleased) {
  ASSERT_NO_FATAL_FAILURE(Open({.device_bytes_max = 64 << 20}));
  if (IsSkipped()) return;
  Buffer half = backend_->Allocate(32 << 20).value();
  const absl::Status status = backend_->Allocate(48 << 20).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  half = Buffer();
  EXPECT_TRUE(backend_->Allocate(48 << 20).ok());
  EXPECT_TRUE(backend_->Allocate(60 << 20).ok());  // of another size: kept blocks give way
  EXPECT_TRUE(absl::IsInvalidArgument(backend_->Allocate(-1).status()));
}

TEST_F(CudaBackendTest, MoreThanTheDeviceHasIsRefusedAndTheDeviceGoesOn) {
  const absl::Status status = backend_->Allocate(int64_t{1} << 50).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  const std::vector<float> values = Numbers(100, 3);
  EXPECT_EQ(Values(Filled(values)), values);
}

TEST_F(CudaBackendTest, AThreadOutlivesItsBackend) {
  std::atomic<int> stage{0};
  std::thread worker([&] {
    Values(Filled(Numbers(10, 1)));
    stage = 1;
    stage.notify_all();
    stage.wait(1);
  });
  stage.wait(0);
  backend_.reset();
  stage = 2;
  stage.notify_all();
  worker.join();
  // And a new backend serves threads that had the old one.
  ASSERT_NO_FATAL_FAILURE(Open({}));
  const std::vector<float> values = Numbers(10, 2);
  EXPECT_EQ(Values(Filled(values)), values);
}

// The same operations on other contents: run, captured, then repeated without being asked for.
TEST_F(CudaBackendTest, RepeatedOperationsSeeWhatTheMemoryHolds) {
  const int64_t width = 300;
  const Buffer weight = Filled(std::vector<float>(width, 1)), out = Filled(Numbers(width, 1));
  Buffer in = Filled(Numbers(width, 2));
  const int64_t key[] = {Backend::NewRepeatId(), 1};
  int calls = 0;
  for (uint32_t i = 0; i < 5; ++i) {
    const std::vector<float> values = Numbers(width, 10 + i);
    ASSERT_TRUE(backend_->CopyIn(in.data(), values.data(), width * 4).ok());
    const absl::Status status = backend_->Repeat(key, [&] {
      ++calls;
      return backend_->RmsNorm({.in = in.as<float>(),
                                .in_stride = width,
                                .weight = weight.as<float>(),
                                .rows = 1,
                                .width = width,
                                .out = out.data(),
                                .out_stride = width});
    });
    ASSERT_TRUE(status.ok()) << status;
    double squares = 0;
    for (float v : values) squares += double{v} * v;
    const double scale = 1 / std::sqrt(squares / width);
    const std::vector<float> normed = Values(out);
    for (int64_t j = 0; j < width; ++j) ASSERT_NEAR(normed[j], values[j] * scale, 1e-5) << i;
  }
  EXPECT_EQ(calls, 2);
}

// As a decode step does: what it reads was uploaded just before, and it begins with a copy.
TEST_F(CudaBackendTest, RepeatedCopiesSeeWhatWasUploaded) {
  const Buffer there = Filled({0, 0, 0}), logits = Filled({0, 0, 0}), best = Filled({0});
  const int64_t key[] = {Backend::NewRepeatId()};
  int calls = 0;
  for (int32_t i = 0; i < 7; ++i) {
    std::vector<float> values(3, 1);
    values[static_cast<size_t>(i % 3)] = 2;
    ASSERT_TRUE(backend_->Upload(there.data(), values.data(), 12).ok());
    values.assign(3, 9);  // it has been read
    const absl::Status status = backend_->Repeat(key, [&] {
      ++calls;
      const absl::Status copied = backend_->Copy(logits.data(), there.data(), 12);
      if (!copied.ok()) return copied;
      return backend_->ArgMax({.in = logits.as<float>(),
                               .in_stride = 3,
                               .rows = 1,
                               .columns = 3,
                               .out = best.as<int32_t>()});
    });
    ASSERT_TRUE(status.ok()) << status;
    int32_t column = -1;
    ASSERT_TRUE(backend_->CopyOut(&column, best.data(), 4).ok());
    ASSERT_EQ(column, i % 3);
  }
  EXPECT_EQ(calls, 2);
}

// More of them than are remembered: the oldest is forgotten, and comes back when it is asked for.
TEST_F(CudaBackendTest, MoreKeysThanAreRememberedGoOn) {
  const int64_t id = Backend::NewRepeatId();
  const Buffer logits = Filled({1, 5, 3}), best = Filled({0});
  for (int64_t i = 0; i < 3 * 700; ++i) {
    const int64_t key[] = {id, i / 2 % 700};  // each twice: run, then captured
    ASSERT_TRUE(backend_->Zero(best.data(), 4).ok());
    ASSERT_TRUE(backend_
                    ->Repeat(key,
                             [&] {
                               return backend_->ArgMax({.in = logits.as<float>(),
                                                        .in_stride = 3,
                                                        .rows = 1,
                                                        .columns = 3,
                                                        .out = best.as<int32_t>()});
                             })
                    .ok());
    int32_t column = 0;
    ASSERT_TRUE(backend_->CopyOut(&column, best.data(), 4).ok());
    ASSERT_EQ(column, 1) << i;
  }
}

// What reads host memory is not captured, but right; an error stays an error.
TEST_F(CudaBackendTest, WhatCannotBeRepeatedRuns) {
  const Buffer state = Filled(std::vector<float>(1, 0)), one = Filled(std::vector<float>(8, 1)),
               y = Filled({0});
  const SequenceRows sequence = {.row_begin = 0, .row_count = 1, .state = state.as<float>()};
  const Buffer table = backend_->Allocate(sizeof(sequence)).value();
  ASSERT_TRUE(backend_->CopyIn(table.data(), &sequence, sizeof(sequence)).ok());
  for (const bool resident : {false, true}) {
    const int64_t key[] = {Backend::NewRepeatId()};
    int calls = 0;
    std::vector<float> states;
    for (int i = 0; i < 4; ++i) {
      ASSERT_TRUE(
          backend_
              ->Repeat(key,
                       [&] {
                         ++calls;
                         return backend_->SsmStep(
                             {.xbc = one.as<float>(),
                              .xbc_stride = 3,
                              .dt = one.as<float>(),
                              .dt_stride = 1,
                              .dt_bias = one.as<float>(),
                              .a_log = one.as<float>(),
                              .d_skip = one.as<float>(),
                              .heads = 1,
                              .head_dim = 1,
                              .state_size = 1,
                              .sequences = &sequence,
                              .sequence_count = 1,
                              .backend_sequences = resident ? table.as<SequenceRows>() : nullptr,
                              .rows = 1,
                              .y = y.as<float>(),
                              .y_stride = 1});
                       })
              .ok());
      states.push_back(Values(state)[0]);
      EXPECT_GT(states.back(), 2.0f);  // dt = log(1 + e^2), and little is left of what was before
      EXPECT_NE(Values(y)[0], 0.0f);
    }
    // Each repetition steps once: the third from what the second left.
    if (!resident) {
      EXPECT_GT(states[1], states[0]);
    }
    EXPECT_EQ(calls, resident ? 2 : 5);
  }
  const int64_t key[] = {Backend::NewRepeatId()};
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(
        absl::IsInternal(backend_->Repeat(key, [] { return absl::InternalError("lost"); })));
  }
}

TEST_F(CudaBackendTest, PassesRunOnceEach) {
  std::vector<std::atomic<int>> runs(17);
  backend_->RunPasses(17, [&](int64_t pass) { ++runs[pass]; });
  for (const std::atomic<int>& count : runs) EXPECT_EQ(count.load(), 1);
}

// More queries than one pass takes, the landmarks half in memory of the host; a query alone has the
// same result to the last bit.
TEST_F(CudaBackendTest, LandmarkScanFindsTheBestOfEveryQueryInAnyCompany) {
  constexpr int64_t kDim = 64, kQueries = 141, kBest = 5, kHostRows = 700, kDeviceRows = 20513;
  constexpr int64_t kRows = kHostRows + kDeviceRows;
  std::vector<Bf16> rows;
  for (const float v : Numbers(kRows * kDim, 21)) rows.push_back(FloatToBf16(v));
  const std::vector<float> queries = Numbers(kQueries * kDim, 22);
  const Buffer device = backend_->Allocate(kDeviceRows * kDim * 2).value();
  ASSERT_TRUE(backend_->CopyIn(device.data(), rows.data() + kHostRows * kDim, device.bytes()).ok());
  const std::vector<LandmarkSlab> slabs = {{rows.data(), kHostRows}, {device.data(), kDeviceRows}};
  const auto scan = [&](int64_t first, int64_t count, int64_t* indices, float* scores) {
    return backend_->LandmarkTopK({.queries = queries.data() + first * kDim,
                                   .n_queries = count,
                                   .dim = kDim,
                                   .slabs = slabs,
                                   .k = kBest,
                                   .indices = indices,
                                   .scores = scores});
  };
  std::vector<int64_t> indices(kQueries * kBest, -7);
  std::vector<float> scores(indices.size());
  ASSERT_TRUE(scan(0, kQueries, indices.data(), scores.data()).ok());
  std::vector<std::pair<double, int64_t>> all(kRows);
  for (int64_t q = 0; q < kQueries; ++q) {
    for (int64_t r = 0; r < kRows; ++r) {
      double sum = 0;
      for (int64_t d = 0; d < kDim; ++d) {
        sum += double{Bf16ToFloat(rows[static_cast<size_t>(r * kDim + d)])} *
               double{queries[static_cast<size_t>(q * kDim + d)]};
      }
      all[static_cast<size_t>(r)] = {sum, r};
    }
    std::partial_sort(all.begin(), all.begin() + kBest, all.end(), std::greater<>());
    for (int64_t i = 0; i < kBest; ++i) {
      // Float32 sums and the query's bf16 split, both far below this.
      EXPECT_NEAR(scores[static_cast<size_t>(q * kBest + i)], all[static_cast<size_t>(i)].first,
                  1e-4)
          << "query " << q << " place " << i;
    }
  }
  for (const int64_t q : {0, 40, 140}) {
    std::vector<int64_t> alone(kBest);
    std::vector<float> alone_scores(kBest);
    ASSERT_TRUE(scan(q, 1, alone.data(), alone_scores.data()).ok());
    for (int64_t i = 0; i < kBest; ++i) {
      EXPECT_EQ(alone[static_cast<size_t>(i)], indices[static_cast<size_t>(q * kBest + i)]);
      EXPECT_EQ(alone_scores[static_cast<size_t>(i)], scores[static_cast<size_t>(q * kBest + i)]);
    }
  }
}

// Rows by themselves, in a call of many rows and among others: the same bits, whichever kernels the
// numbers of rows and the neighbours' pages choose.
TEST_F(CudaBackendTest, HsaRowsDoNotDependOnTheirCompany) {
  constexpr int64_t kRows = 5000, kHeads = 6, kDim = 64, kTokens = 64, kPagesMax = 9, kStored = 60;
  constexpr int64_t kWidth = kHeads * kDim, kPageElements = 2 * kTokens * kDim;
  std::vector<Bf16> stored;
  for (const float v : Numbers(kStored * kPageElements, 31)) stored.push_back(FloatToBf16(v));
  const Buffer pool = backend_->Allocate(static_cast<int64_t>(stored.size()) * 2).value();
  ASSERT_TRUE(backend_->CopyIn(pool.data(), stored.data(), pool.bytes()).ok());
  const Buffer q = Filled(Numbers(kRows * kWidth, 32));
  const Buffer weights = Filled(Numbers(kRows * kPagesMax, 33));
  std::mt19937 random(34);
  std::vector<const void*> table(kRows * kPagesMax, nullptr);
  std::vector<int32_t> counts(kRows);
  for (int64_t r = 0; r < kRows; ++r) {
    const bool same = r % 1000 > 300 && random() % 40 != 0;  // runs of neighbours, and none
    counts[r] = same ? counts[r - 1] : static_cast<int32_t>(random() % (kPagesMax + 1));
    for (int64_t i = 0; i < counts[r]; ++i) {
      table[r * kPagesMax + i] = same ? table[(r - 1) * kPagesMax + i]
                                      : pool.as<Bf16>() + random() % kStored * kPageElements;
    }
  }
  const Buffer pages = backend_->Allocate(static_cast<int64_t>(table.size() * 8)).value();
  ASSERT_TRUE(backend_->CopyIn(pages.data(), table.data(), pages.bytes()).ok());
  const Buffer page_counts = backend_->Allocate(kRows * 4).value();
  ASSERT_TRUE(backend_->CopyIn(page_counts.data(), counts.data(), kRows * 4).ok());
  const Buffer out = backend_->Allocate(kRows * kWidth * 4).value();
  const auto attend = [&](int64_t first, int64_t rows) {
    EXPECT_TRUE(backend_->Zero(out.data(), out.bytes()).ok());
    EXPECT_TRUE(backend_
                    ->HsaAttend({.q = q.as<float>() + first * kWidth,
                                 .q_stride = kWidth,
                                 .pages = pages.as<const void*>() + first * kPagesMax,
                                 .weights = weights.as<float>() + first * kPagesMax,
                                 .page_counts = page_counts.as<int32_t>() + first,
                                 .pages_max = kPagesMax,
                                 .pages_resident = true,
                                 .page_dtype = DType::kBf16,
                                 .rows = rows,
                                 .heads = kHeads,
                                 .head_dim = kDim,
                                 .chunk_tokens = kTokens,
                                 .out = out.data(),
                                 .out_stride = kWidth})
                    .ok());
    std::vector<float> values = Values(out);
    values.resize(rows * kWidth);
    return values;
  };
  const std::vector<float> together = attend(0, kRows);
  const std::vector<std::pair<int64_t, int64_t>> parts = {
      {0, 7}, {290, 100}, {777, 2048}, {1301, 3333}, {4999, 1}};  // first row, rows
  for (const auto& [first, rows] : parts) {
    const std::vector<float> some = attend(first, rows);
    EXPECT_TRUE(std::equal(some.begin(), some.end(), together.begin() + first * kWidth))
        << "rows " << first << " to " << first + rows;
  }
}

}  // namespace
}  // namespace mneme
