// The network on random bundles of odd shapes against its double twin, on every instruction
// set and device, and its promises about company, steps, forks and bad input. The second look has a
// file of its own.

#include "model/ramba_model.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/model/bundle_files.h"
#include "tests/model/random_bundle.h"
#include "tests/model/random_model.h"
#include "tests/reference/network_reference.h"

namespace mneme {
namespace {

using testing::HasSubstr;

using RambaModelTest = RandomModelTest;

INSTANTIATE_TEST_SUITE_P(Devices, RambaModelTest, testing::ValuesIn(Devices()),
                         [](const auto& device) { return device.param; });

TEST_P(RambaModelTest, OddShapesMatchTheTwinOnEveryInstructionSet) {
  for (CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAmx}) {
    if (isa > DetectCpuIsa()) continue;
    if (GetParam() != "cpu" && isa != CpuIsa::kPortable) continue;
    SCOPED_TRACE(CpuIsaName(isa));
    CompareWithReference(
        MakeModel(GetParam(), OddShape(), "I8", Precision::kF32, {.threads = 2, .isa_max = isa}),
        kF32);
    CompareWithReference(
        MakeModel(GetParam(), OddShape(), "I8", Precision::kBf16, {.threads = 2, .isa_max = isa}),
        kBf16);
  }
}

TEST_P(RambaModelTest, WideStatesAndLongSegmentsMatchTheTwin) {
  CompareWithReference(MakeModel(GetParam(), WideStateShape(), "I8", Precision::kF32), kF32);
  CompareWithReference(MakeModel(GetParam(), WideStateShape(), "I8", Precision::kBf16), kBf16);
}

TEST_P(RambaModelTest, ChunksThatSeeWhatFollowsMatchTheTwinOnEveryInstructionSet) {
  for (CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAmx}) {
    if (isa > DetectCpuIsa()) continue;
    if (GetParam() != "cpu" && isa != CpuIsa::kPortable) continue;
    for (const int halo : {1, 15, 16, 31, 80}) {  // of chunks of 16 tokens, segments of 64
      SCOPED_TRACE(absl::StrCat(CpuIsaName(isa), ", ", halo, " tokens"));
      const RandomShape shape = WithHalo(OddShape(), halo);
      CompareWithReference(
          MakeModel(GetParam(), shape, "I8", Precision::kF32, {.threads = 2, .isa_max = isa}),
          kF32);
      CompareWithReference(
          MakeModel(GetParam(), shape, "I8", Precision::kBf16, {.threads = 2, .isa_max = isa}),
          kBf16);
    }
  }
}

TEST_P(RambaModelTest, ChunksThatSeeWhatFollowsInALaterTileMatchTheTwin) {
  for (const RandomShape& shape :
       {ManyTilesShape(), WithHalo(ManyTilesShape(), 1), WithHalo(ManyTilesShape(), 150)}) {
    SCOPED_TRACE(absl::StrCat(shape.encoder_halo, " tokens"));
    CompareWithReference(MakeModel(GetParam(), shape, "I8", Precision::kF32), kF32);
    CompareWithReference(MakeModel(GetParam(), shape, "I8", Precision::kBf16), kBf16);
  }
}

// The twin is slow: what the CPU computes in f32 stands for it.
TEST_P(RambaModelTest, ASegmentOfSeveralTilesOfAnyDeviceIsThatOfTheCpu) {
  const TestModel cpu = MakeModel("cpu", LongSegmentShape(), "I8", Precision::kF32);
  const std::vector<TokenId> ids = RandomIds(cpu.model->config(), 1 << 16, 8);
  const SegmentChunks want = Derive(*cpu.model, {ids})[0];
  for (const Precision precision : {Precision::kF32, Precision::kBf16}) {
    const TestModel setup = MakeModel(GetParam(), LongSegmentShape(), "I8", precision);
    const SegmentChunks got = Derive(*setup.model, {ids})[0];
    ASSERT_EQ(got.chunk_count, want.chunk_count);
    const PageLayout layout = setup.model->page_layout();
    const double tolerance = precision == Precision::kF32 ? kF32.chunks : kBf16.chunks;
    for (int chunk = 0; chunk < want.chunk_count; ++chunk) {
      Error error;
      for (int64_t i = chunk * layout.landmark_dim; i < (chunk + 1) * layout.landmark_dim; ++i) {
        error.Add(StoredElement(got.landmarks.data(), layout.dtype, i),
                  StoredElement(want.landmarks.data(), DType::kF32, i));
      }
      ASSERT_LE(error.relative(), tolerance) << "chunk " << chunk;
    }
  }
}

TEST_P(RambaModelTest, TheSmallestShapeMatchesTheTwin) {
  CompareWithReference(MakeModel(GetParam(), SmallestShape(), "F32", Precision::kF32), kF32);
  CompareWithReference(MakeModel(GetParam(), WithHalo(SmallestShape(), 2), "F32", Precision::kF32),
                       kF32);
}

TEST_P(RambaModelTest, MatricesInF32AndBf16MatchTheTwin) {
  for (const char* dtype : {"F32", "BF16"}) {
    SCOPED_TRACE(dtype);
    CompareWithReference(MakeModel(GetParam(), OddShape(), dtype, Precision::kF32), kF32);
    CompareWithReference(MakeModel(GetParam(), OddShape(), dtype, Precision::kBf16), kBf16);
  }
}

TEST_P(RambaModelTest, SegmentsDoNotDependOnTheirCompanyNorOnThreads) {
  for (const RandomShape& shape : {WideStateShape(), WithHalo(OddShape(), 31), ManyTilesShape()}) {
    for (const Precision precision : {Precision::kF32, Precision::kBf16}) {
      const TestModel one = MakeModel(GetParam(), shape, "I8", precision, {.threads = 1});
      const TestModel three = MakeModel(GetParam(), shape, "I8", precision, {.threads = 3});
      const int S = shape.chunk_size, longest = shape.segment_size;
      std::vector<std::vector<TokenId>> segments;
      for (int64_t length : {1, S, S + 1, longest, longest * 2 / 3, 7, longest - 1}) {
        segments.push_back(RandomIds(one.model->config(), length, static_cast<uint32_t>(length)));
      }
      const std::vector<SegmentChunks> together = Derive(*three.model, segments);
      for (size_t i = 0; i < segments.size(); ++i) {
        const std::vector<SegmentChunks> alone = Derive(*one.model, {segments[i]});
        EXPECT_EQ(alone[0].pages, together[i].pages) << "segment " << i;
        EXPECT_EQ(alone[0].landmarks, together[i].landmarks) << "segment " << i;
      }
    }
  }
}

TEST_P(RambaModelTest, ReadersDoNotDependOnTheirCompany) {
  for (const Precision precision : {Precision::kF32, Precision::kBf16}) {
    const TestModel setup = MakeModel(GetParam(), OddShape(), "I8", precision);
    const Model& model = *setup.model;
    const ModelConfig& c = model.config();
    // Prompts of several lengths and single tokens, mixed; then all by one token.
    std::vector<std::vector<TokenId>> prompts;
    for (int64_t length : {1, 30, 1, 1, 200, 2})
      prompts.push_back(RandomIds(c, length, static_cast<uint32_t>(length)));
    std::vector<std::unique_ptr<ReaderState>> states;
    std::vector<ReaderStep> steps;
    for (const std::vector<TokenId>& prompt : prompts) {
      states.push_back(model.NewReaderState());
      steps.push_back({.state = states.back().get(), .ids = prompt});
    }
    const auto read = [&](absl::Span<const ReaderStep> batch) {
      LowerRows lower;
      EXPECT_TRUE(model.ReadLower(batch, &lower).ok());
      std::vector<RowSelection> none(lower.row_count);
      UpperRows upper;
      EXPECT_TRUE(model.ReadUpper(batch, lower, none, LogitRows::kLastOfStep, &upper).ok());
      return upper.logits;
    };
    const std::vector<float> together = read(steps);
    const std::vector<TokenId> next = {5};
    for (ReaderStep& step : steps) step.ids = next;
    const std::vector<float> after = read(steps);
    ASSERT_EQ(together.size(), prompts.size() * c.vocab_size);
    for (size_t i = 0; i < prompts.size(); ++i) {
      const auto state = model.NewReaderState();
      ReaderStep step = {.state = state.get(), .ids = prompts[i]};
      const auto row = [&](const std::vector<float>& logits) {
        return std::vector<float>(logits.begin() + i * c.vocab_size,
                                  logits.begin() + (i + 1) * c.vocab_size);
      };
      EXPECT_EQ(read(absl::MakeConstSpan(&step, 1)), row(together)) << "prompt " << i;
      step.ids = next;
      EXPECT_EQ(read(absl::MakeConstSpan(&step, 1)), row(after)) << "after prompt " << i;
    }
  }
}

TEST_P(RambaModelTest, TheBestTokenIsThatOfTheLargestLogit) {
  const TestModel setup = MakeModel(GetParam(), OddShape(), "I8", Precision::kBf16);
  const Model& model = *setup.model;
  const std::vector<TokenId> prompts[] = {RandomIds(model.config(), 20, 3), {7}, {9}, {9}};
  const auto read = [&](LogitRows which) {
    std::vector<std::unique_ptr<ReaderState>> states;
    std::vector<ReaderStep> steps;
    for (const std::vector<TokenId>& prompt : prompts) {
      states.push_back(model.NewReaderState());
      steps.push_back({.state = states.back().get(), .ids = prompt});
    }
    LowerRows lower;
    UpperRows upper;
    EXPECT_TRUE(model.ReadLower(steps, &lower).ok());
    EXPECT_TRUE(
        model.ReadUpper(steps, lower, std::vector<RowSelection>(lower.row_count), which, &upper)
            .ok());
    return upper;
  };
  const std::vector<float> logits = read(LogitRows::kLastOfStep).logits;
  const UpperRows upper = read(LogitRows::kBestOfStep);
  EXPECT_TRUE(upper.logits.empty());
  ASSERT_EQ(upper.best.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    const auto row = logits.begin() + static_cast<ptrdiff_t>(i) * model.config().vocab_size;
    EXPECT_EQ(upper.best[i], std::max_element(row, row + model.config().vocab_size) - row);
  }
}

TEST_P(RambaModelTest, AForkGoesItsOwnWay) {
  const TestModel setup = MakeModel(GetParam(), OddShape(), "I8", Precision::kBf16);
  const Model& model = *setup.model;
  const std::vector<TokenId> prompt = RandomIds(model.config(), 20, 3), next = {7};
  const auto state = model.NewReaderState();
  LowerRows before, first, second;
  ReaderStep step = {.state = state.get(), .ids = prompt};
  ASSERT_TRUE(model.ReadLower(absl::MakeConstSpan(&step, 1), &before).ok());
  const auto fork = state->Clone();
  ASSERT_NE(fork, nullptr);
  step.ids = next;
  ASSERT_TRUE(model.ReadLower(absl::MakeConstSpan(&step, 1), &first).ok());
  step.state = fork.get();
  ASSERT_TRUE(model.ReadLower(absl::MakeConstSpan(&step, 1), &second).ok());
  EXPECT_EQ(HostRows(*setup.backend, first.hidden, model.config().d_model),
            HostRows(*setup.backend, second.hidden, model.config().d_model));
}

TEST_P(RambaModelTest, CallsFromManyThreadsGiveTheSame) {
  const TestModel setup = MakeModel(GetParam(), OddShape(), "I8", Precision::kBf16);
  const std::vector<TokenId> ids = RandomIds(setup.model->config(), 64, 9);
  const SegmentChunks want = Derive(*setup.model, {ids})[0];
  std::vector<SegmentChunks> got(4);
  std::vector<std::thread> threads;
  for (SegmentChunks& chunks : got) {
    threads.emplace_back([&] {
      for (int i = 0; i < 3; ++i) chunks = Derive(*setup.model, {ids, ids})[1];
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const SegmentChunks& chunks : got) {
    EXPECT_EQ(chunks.pages, want.pages);
    EXPECT_EQ(chunks.landmarks, want.landmarks);
  }
}

TEST_P(RambaModelTest, FirstChunksAreTheSameBitsHoweverManyFollowWhatTheySee) {
  for (const RandomShape& shape : {WideStateShape(), ManyTilesShape(), WithHalo(OddShape(), 31)}) {
    for (const Precision precision : {Precision::kF32, Precision::kBf16}) {
      const TestModel setup = MakeModel(GetParam(), shape, "I8", precision);
      const ModelConfig& config = setup.model->config();
      const PageLayout layout = setup.model->page_layout();
      const std::vector<TokenId> ids = RandomIds(config, config.segment_size, 11);
      const SegmentChunks whole = Derive(*setup.model, {ids})[0];
      for (int chunks = 1; chunks < whole.chunk_count; ++chunks) {
        const SegmentChunks first =
            Derive(*setup.model, {{ids.begin(), ids.begin() + chunks * config.chunk_size}})[0];
        ASSERT_EQ(first.chunk_count, chunks);
        const int same = std::max(chunks - config.halo_chunks(), 0);
        EXPECT_TRUE(std::equal(first.pages.begin(),
                               first.pages.begin() + same * layout.page_bytes(),
                               whole.pages.begin()))
            << chunks << " of " << whole.chunk_count;
        EXPECT_TRUE(std::equal(first.landmarks.begin(),
                               first.landmarks.begin() + same * layout.landmark_bytes(),
                               whole.landmarks.begin()));
        EXPECT_EQ(
            std::equal(first.landmarks.begin(), first.landmarks.end(), whole.landmarks.begin()),
            config.encoder_halo == 0);
      }
    }
  }
}

TEST_P(RambaModelTest, OnlyThePagesThatAreAskedForAreMade) {
  for (const RandomShape& shape : {OddShape(), ManyTilesShape()}) {
    const TestModel setup = MakeModel(GetParam(), shape, "I8", Precision::kBf16);
    const ModelConfig& config = setup.model->config();
    const std::vector<std::vector<TokenId>> segments = {
        RandomIds(config, config.segment_size, 1), RandomIds(config, config.segment_size - 1, 2),
        RandomIds(config, 1, 3), RandomIds(config, config.segment_size, 4)};
    const std::vector<absl::Span<const TokenId>> spans(segments.begin(), segments.end());
    const std::vector<SegmentChunks> all = Derive(*setup.model, segments);
    const int last = all[0].chunk_count;
    const std::vector<PageRange> ranges = {{1, 3}, {last - 1, last + 5}, {0, 1}, {0, 0}};
    std::vector<SegmentChunks> some;
    ASSERT_TRUE(setup.model->ForwardLower(spans, ranges, &some).ok());
    const int64_t page_bytes = setup.model->page_layout().page_bytes();
    for (size_t i = 0; i < segments.size(); ++i) {
      EXPECT_EQ(some[i].landmarks, all[i].landmarks);
      const int64_t end = std::min(ranges[i].end, all[i].chunk_count);
      EXPECT_EQ(some[i].pages,
                std::vector<uint8_t>(all[i].pages.begin() + ranges[i].begin * page_bytes,
                                     all[i].pages.begin() + end * page_bytes));
    }
    EXPECT_EQ(
        setup.model->ForwardLower(spans, absl::MakeConstSpan(ranges).subspan(1), &some).code(),
        absl::StatusCode::kInvalidArgument);
  }
}

TEST_P(RambaModelTest, RetrievalScaleBeyondAFloatIsRefused) {
  const std::string folder = absl::StrCat(testing::TempDir(), "/scale_", getpid());
  const auto backend = CreateBackend(GetParam(), {.threads = 1}).value();
  const auto create = [&](float log_scale) {
    BundleFiles files = SmallBundle("F32");
    std::memcpy(files.tensors["retrieval_log_scale"].data.data(), &log_scale, 4);
    files.Write(folder);
    auto bundle = LoadBundle(folder);
    std::filesystem::remove_all(folder);
    EXPECT_TRUE(bundle.ok()) << bundle.status();
    return RambaModel::Create(*std::move(bundle), *backend, {}).status();
  };
  EXPECT_TRUE(create(8).ok());
  const absl::Status status = create(1000);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("retrieval_log_scale is 1000"));
}

TEST_P(RambaModelTest, BadIngestIsRefusedWithItsValue) {
  const TestModel setup = MakeModel(GetParam(), OddShape(), "I8", Precision::kF32);
  std::vector<SegmentChunks> out;
  const auto status_of = [&](std::vector<TokenId> ids) {
    const absl::Span<const TokenId> span(ids);
    return setup.model->ForwardLower(absl::MakeConstSpan(&span, 1), &out);
  };
  EXPECT_EQ(status_of({}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status_of(std::vector<TokenId>(65, 1)).message()),
              HasSubstr("65 tokens, allowed are 1 to 64"));
  EXPECT_THAT(std::string(status_of({1, 264}).message()), HasSubstr("token 1 has id 264"));
  EXPECT_THAT(std::string(status_of({-1}).message()), HasSubstr("token 0 has id -1"));
  EXPECT_TRUE(setup.model->ForwardLower({}, &out).ok());
  EXPECT_TRUE(out.empty());
}

TEST_P(RambaModelTest, BadReaderStepsAreRefused) {
  const TestModel setup = MakeModel(GetParam(), OddShape(), "I8", Precision::kF32);
  const Model& model = *setup.model;
  const auto state = model.NewReaderState();
  const std::vector<TokenId> good = {1, 2}, bad = {1, 9999};
  LowerRows lower;
  const auto read = [&](ReaderState* reader, absl::Span<const TokenId> ids) {
    const ReaderStep step = {.state = reader, .ids = ids};
    return model.ReadLower(absl::MakeConstSpan(&step, 1), &lower).code();
  };
  EXPECT_EQ(read(nullptr, good), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(read(state.get(), {}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(read(state.get(), bad), absl::StatusCode::kInvalidArgument);
  ASSERT_EQ(read(state.get(), good), absl::StatusCode::kOk);

  const ReaderStep step = {.state = state.get(), .ids = good};
  const auto read_upper = [&](const LowerRows& rows, const std::vector<RowSelection>& selections) {
    UpperRows upper;
    return model.ReadUpper(absl::MakeConstSpan(&step, 1), rows, selections, LogitRows::kAll, &upper)
        .code();
  };
  const uint8_t* page = nullptr;
  const float weights[] = {0.5f, 0.25f};
  EXPECT_EQ(read_upper(LowerRows(), {{}, {}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(read_upper(lower, {{}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(read_upper(lower, {{.pages = absl::MakeConstSpan(&page, 1), .weights = weights}, {}}),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(read_upper(lower, {{}, {}}), absl::StatusCode::kOk);
}

TEST_P(RambaModelTest, NoStepsAreNoWork) {
  const TestModel setup = MakeModel(GetParam(), OddShape(), "I8", Precision::kF32);
  LowerRows lower;
  UpperRows upper;
  EXPECT_TRUE(setup.model->ReadLower({}, &lower).ok());
  EXPECT_TRUE(setup.model->ReadUpper({}, lower, {}, LogitRows::kAll, &upper).ok());
  EXPECT_TRUE(upper.logits.empty());
}

TEST_P(RambaModelTest, WhatIsStoredTellsItsDerivation) {
  const TestModel f32 = MakeModel(GetParam(), OddShape(), "I8", Precision::kF32),
                  bf16 = MakeModel(GetParam(), OddShape(), "I8", Precision::kBf16);
  EXPECT_NE(f32.model->derivation_fingerprint(), bf16.model->derivation_fingerprint());
  EXPECT_NE(f32.model->derivation_fingerprint(), f32.model->bundle().fingerprint);
  EXPECT_EQ(f32.model->page_layout().page_bytes(), 2 * 16 * 32 * 4);
  EXPECT_EQ(bf16.model->page_layout().landmark_bytes(), 40 * 2);
}

}  // namespace
}  // namespace mneme
