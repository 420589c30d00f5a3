// What answers and scored texts read of a memory, in networks with told_penalty, as the double twin
// has it token by token: random networks through the whole engine. What is generated is given, so
// that there are lists.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "engine/engine.h"
#include "memory_store/rocksdb/rocksdb_chunk_store.h"
#include "model/ramba_model.h"
#include "tests/engine/engine_harness.h"
#include "tests/model/random_bundle.h"
#include "tests/reference/network_reference.h"

namespace mneme {
namespace {

using ::testing::Contains;

// What one reader put in, and what came of each row of it.
struct Heard {
  std::vector<TokenId> ids;
  std::vector<std::vector<float>> weights;      // most recent chunk first
  std::map<size_t, std::vector<float>> logits;  // of rows behind which something was said
};

// The network of a bundle, but what it says behind a step depends on the reader's tokens alone:
// letters, ends of lines, and now and then the beginning or the end of an answer. Thread-safe.
class ScriptedModel : public Model {
 public:
  explicit ScriptedModel(std::unique_ptr<Model> network) : network_(std::move(network)) {}

  const Bundle& bundle() const override { return network_->bundle(); }
  PageLayout page_layout() const override { return network_->page_layout(); }
  uint64_t derivation_fingerprint() const override { return network_->derivation_fingerprint(); }
  int64_t reader_bytes() const override { return network_->reader_bytes(); }
  int64_t pass_bytes() const override { return network_->pass_bytes(); }
  absl::Status ForwardLower(absl::Span<const absl::Span<const TokenId>> segments,
                            absl::Span<const PageRange> pages,
                            std::vector<SegmentChunks>* out) const override {
    return network_->ForwardLower(segments, pages, out);
  }
  absl::Status CorrectScores(const float* hidden, absl::Span<const RowSelection> selections,
                             std::vector<float>* scores) const override {
    return network_->CorrectScores(hidden, selections, scores);
  }
  std::unique_ptr<ReaderState> NewReaderState() const override {
    std::unique_ptr<ReaderState> state = network_->NewReaderState();
    absl::MutexLock lock(&mutex_);
    readers_[state.get()] = heard_.size();
    heard_.emplace_back();
    return state;
  }
  absl::Status ReadLower(absl::Span<const ReaderStep> steps, LowerRows* out) const override {
    Gate* gate = nullptr;
    {
      absl::MutexLock lock(&mutex_);
      lower_batches_.push_back(steps.size());
      gate = gate_;
    }
    if (gate != nullptr) gate->Pass();
    return network_->ReadLower(steps, out);
  }
  absl::Status ReadUpper(absl::Span<const ReaderStep> steps, const LowerRows& lower,
                         absl::Span<const RowSelection> selections, LogitRows which,
                         UpperRows* out) const override {
    const bool best = which == LogitRows::kBestOfStep;
    const absl::Status status =
        network_->ReadUpper(steps, lower, selections, best ? LogitRows::kLastOfStep : which, out);
    if (!status.ok()) return status;
    absl::MutexLock lock(&mutex_);
    upper_batches_.push_back(steps.size());
    size_t row = 0;
    out->best.clear();
    for (size_t i = 0; i < steps.size(); ++i) {
      Heard& heard = heard_[readers_.at(steps[i].state)];
      for (const TokenId id : steps[i].ids) {
        heard.ids.push_back(id);
        heard.weights.push_back(WeightsOf(selections[row], row, *out));
        ++row;
      }
      if (which == LogitRows::kAll) continue;
      float* const logits = out->logits.data() + i * static_cast<size_t>(config().vocab_size);
      heard.logits[heard.ids.size() - 1].assign(logits, logits + config().vocab_size);
      const TokenId next = Next(heard.ids);
      out->best.push_back(next);
      logits[next] = 1e4f;
    }
    if (best) {
      out->logits.clear();
    } else {
      out->best.clear();
    }
    return status;
  }

  // Holds up whoever reads; null: nobody.
  void set_gate(Gate* gate) {
    absl::MutexLock lock(&mutex_);
    gate_ = gate;
  }
  // What was heard, and with how many steps the halves were run, since the last call.
  struct Log {
    std::vector<Heard> readers;
    std::vector<size_t> lower_batches, upper_batches;
  };
  Log Take() {
    absl::MutexLock lock(&mutex_);
    readers_.clear();
    return {std::exchange(heard_, {}), std::exchange(lower_batches_, {}),
            std::exchange(upper_batches_, {})};
  }

 private:
  std::vector<float> WeightsOf(const RowSelection& selection, size_t row,
                               const UpperRows& upper) const {
    if (config().look_heads == 0) return {selection.weights.begin(), selection.weights.end()};
    const auto first =
        upper.weights.begin() + static_cast<ptrdiff_t>(row) * config().chunks_per_read;
    return {first, first + static_cast<ptrdiff_t>(selection.pages.size())};
  }
  TokenId Next(const std::vector<TokenId>& ids) const {
    std::mt19937 random(static_cast<uint32_t>(ids.size()));
    for (const TokenId id : ids) random.seed(static_cast<uint32_t>(random()) + id);
    const uint32_t draw = random() % 64;
    if (draw < 16) return bundle().line_end_id;
    if (draw < 20) return bundle().answer_id;
    if (draw == 20) return bundle().question_id;
    if (draw == 21) return bundle().document_id;
    return tokenizer().PieceToId("<0x61>") + static_cast<TokenId>(draw % 26);
  }

  const std::unique_ptr<Model> network_;
  mutable absl::Mutex mutex_;
  Gate* gate_ ABSL_GUARDED_BY(mutex_) = nullptr;
  mutable std::map<const ReaderState*, size_t> readers_ ABSL_GUARDED_BY(mutex_);
  mutable std::vector<Heard> heard_ ABSL_GUARDED_BY(mutex_);
  mutable std::vector<size_t> lower_batches_ ABSL_GUARDED_BY(mutex_);
  mutable std::vector<size_t> upper_batches_ ABSL_GUARDED_BY(mutex_);
};

// An engine over such a network, with a memory of a few documents.
class ToldEngine {
 public:
  ToldEngine(const RandomShape& shape, int64_t host_pages_max) {
    std::string folder = std::filesystem::temp_directory_path() / "mneme_told_XXXXXX";
    EXPECT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    backend_ = CreateCpuBackend({.threads = 2}).value();
    model_ = std::make_unique<ScriptedModel>(
        RambaModel::Create(RandomBundle(shape, "F32", 3), *backend_, {.precision = Precision::kF32})
            .value());
    chunk_store_ =
        OpenRocksDbChunkStore({.data_dir = folder_, .reserve_bytes = 0}, metrics_).value();
    const PageLayout layout = model_->page_layout();
    MemoryStoreOptions options = {.page_bytes = layout.page_bytes(),
                                  .landmark_bytes = layout.landmark_bytes(),
                                  .chunk_tokens = layout.chunk_tokens,
                                  .derivation_fingerprint = model_->derivation_fingerprint()};
    if (host_pages_max > 0) options.host_page_bytes_max = host_pages_max * layout.page_bytes();
    store_ = MemoryStore::Open(options, *chunk_store_, metrics_, RealClock()).value();
    engine_ = Engine::Open({}, *model_, *backend_, *store_, metrics_, RealClock()).value();
    reference_ = std::make_unique<NetworkReference>(model_->bundle());
    EXPECT_TRUE(engine_->CreateMemory(kMemory, "").ok());
    for (uint32_t i = 0; i < 3; ++i) Ingest(absl::StrCat("d", i), Letters(i, 150));
  }
  ~ToldEngine() {
    gate_.Open();
    engine_.reset();
    store_.reset();
    chunk_store_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  Engine& engine() { return *engine_; }
  ScriptedModel& model() { return *model_; }

  static std::string Letters(uint32_t seed, int count) {
    std::mt19937 random(seed);
    std::string text;
    for (int i = 0; i < count; ++i) text += "bcdefghij klm\n"[random() % 14];
    return text;
  }

  void Answer(const std::string& question, double temperature) {
    const auto result = engine_->Generate({.memories = {kMemory},
                                           .question = question,
                                           .max_tokens = 80,
                                           .temperature = temperature,
                                           .seed = 1,
                                           .ignore_eos = true},
                                          {}, [](const GeneratePiece&) { return true; });
    EXPECT_TRUE(result.ok()) << result.status();
  }

  // The first reader of these holds up the others until all of them wait.
  void AnswerTogether(const std::vector<std::pair<std::string, double>>& questions) {
    model_->set_gate(&gate_);
    std::vector<std::thread> threads;
    for (const auto& [question, temperature] : questions) {
      threads.emplace_back([this, q = question, t = temperature] { Answer(q, t); });
      if (threads.size() == 1) {
        EXPECT_TRUE(gate_.WaitArrived(1));
      }
    }
    const std::string wanted =
        absl::StrCat("mneme_engine_queue_depth{queue=\"read_steps\"} ", questions.size() - 1, "\n");
    const absl::Time until = absl::Now() + kPatience;
    while (!absl::StrContains(metrics_.Expose(), wanted) && absl::Now() < until) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    gate_.Open();
    for (std::thread& thread : threads) thread.join();
    model_->set_gate(nullptr);
  }

  ScoreResult Score(const std::string& prompt, const std::string& text) {
    const auto result = engine_->Score({.memories = {kMemory}, .prompt = prompt, .text = text}, {});
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : ScoreResult();
  }

  NetworkReference::Reading Twin(const std::vector<TokenId>& ids) const {
    return reference_->Read(ids, chunks_);
  }

  // Returns how many of the chunks that were read had been told.
  int CompareWithTwin(const Heard& heard) const {
    const NetworkReference::Reading twin = Twin(heard.ids);
    int told = 0;
    for (size_t row = 0; row < heard.ids.size(); ++row) {
      EXPECT_EQ(heard.weights[row].size(), twin.weights[row].size());
      for (size_t i = 0; i < heard.weights[row].size(); ++i) {
        told += twin.told[row].contains(twin.index[row][i]);
        // f32: the twin's values but for the order of sums.
        EXPECT_NEAR(heard.weights[row][i], twin.weights[row][i], 1e-4) << "row " << row;
      }
    }
    for (const auto& [row, logits] : heard.logits) {
      for (size_t i = 0; i < logits.size(); ++i) {
        EXPECT_NEAR(logits[i], twin.logits[row][i], 1e-3) << "row " << row;
      }
    }
    return told;
  }

 private:
  static constexpr char kMemory[] = "tenants/default/memories/m";

  void Ingest(const std::string& id, const std::string& text) {
    TestWriter writer(*engine_, absl::StrCat(kMemory, "/documents/", id));
    writer.Send(text);
    EXPECT_TRUE(writer->Seal().ok());
    EXPECT_TRUE(writer.WaitVisible(static_cast<int64_t>(text.size())));
    EXPECT_TRUE(writer.WaitSealed());
    std::vector<Token> tokens;
    model_->tokenizer().Encode(text, &tokens);
    std::vector<TokenId> ids = {model_->bundle().document_id};
    for (const Token& token : tokens) ids.push_back(token.id);
    const auto segment = static_cast<size_t>(model_->config().segment_size);
    for (size_t begin = 0; begin < ids.size(); begin += segment) {
      const absl::Span<const TokenId> part = absl::MakeConstSpan(ids).subspan(begin, segment);
      NetworkReference::Chunks more = reference_->Ingest({part.begin(), part.end()});
      std::move(more.K.begin(), more.K.end(), std::back_inserter(chunks_.K));
      std::move(more.V.begin(), more.V.end(), std::back_inserter(chunks_.V));
      std::move(more.landmarks.begin(), more.landmarks.end(),
                std::back_inserter(chunks_.landmarks));
    }
  }

  std::string folder_;
  Gate gate_;
  Metrics metrics_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<ScriptedModel> model_;
  std::unique_ptr<ChunkStore> chunk_store_;
  std::unique_ptr<MemoryStore> store_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<NetworkReference> reference_;
  NetworkReference::Chunks chunks_;
};

struct Weighing {
  int look_heads = 0;
  int newest_margin = 0;
};

class ToldAnswerTest : public ::testing::TestWithParam<Weighing> {
 protected:
  std::unique_ptr<ToldEngine> Open(int told_penalty, int64_t host_pages_max = 0) {
    return std::make_unique<ToldEngine>(RandomShape{.chunks_per_read = kChunksPerRead,
                                                    .segment_size = 128,
                                                    .look_heads = GetParam().look_heads,
                                                    .newest_margin = GetParam().newest_margin,
                                                    .told_penalty = told_penalty},
                                        host_pages_max);
  }
  // All of these at one time; each must read as the twin does.
  static ScriptedModel::Log AskTogether(
      ToldEngine& engine, const std::vector<std::pair<std::string, double>>& questions) {
    engine.AnswerTogether(questions);
    ScriptedModel::Log log = engine.model().Take();
    EXPECT_EQ(log.readers.size(), questions.size());
    int told = 0;
    for (const Heard& heard : log.readers) told += engine.CompareWithTwin(heard);
    EXPECT_GT(told, 20);
    return log;
  }
  static constexpr int kChunksPerRead = 4;
};

INSTANTIATE_TEST_SUITE_P(Weighings, ToldAnswerTest,
                         ::testing::Values(Weighing{}, Weighing{.look_heads = 2},
                                           Weighing{.newest_margin = 2},
                                           Weighing{.look_heads = 2, .newest_margin = 2}),
                         [](const auto& test) {
                           return absl::StrCat("Look", test.param.look_heads, "Margin",
                                               test.param.newest_margin);
                         });

TEST_P(ToldAnswerTest, AnswersReadAsTheTwinDoes) {
  const auto engine = Open(/*told_penalty=*/3);
  int told = 0;
  for (const double temperature : {0.0, 0.1}) {
    for (const char* question : {"bcd\nefg\nh", "k l m", "d\n<a>e\nf\ng"}) {
      SCOPED_TRACE(absl::StrCat(question, " at ", temperature));
      engine->Answer(question, temperature);
      const ScriptedModel::Log log = engine->model().Take();
      ASSERT_EQ(log.readers.size(), 1u);
      EXPECT_GT(log.readers[0].ids.size(), 80u);
      told += engine->CompareWithTwin(log.readers[0]);
    }
  }
  EXPECT_GT(told, 20);
}

TEST_P(ToldAnswerTest, ReadersTogetherReadAsTheTwinDoes) {
  const auto engine = Open(/*told_penalty=*/3);
  std::vector<std::pair<std::string, double>> questions;
  for (uint32_t i = 0; i < 9; ++i) {
    questions.emplace_back(ToldEngine::Letters(100 + i, 12), i % 3 == 2 ? 0.1 : 0.0);
  }
  EXPECT_THAT(AskTogether(*engine, questions).upper_batches, Contains(::testing::Ge(5u)));
}

TEST_P(ToldAnswerTest, StepsThatAreRunAloneCountOnce) {
  // Room for the pages of four rows: one at a time of each reader, and not of all readers together.
  const auto engine = Open(/*told_penalty=*/3, /*host_pages_max=*/4 * kChunksPerRead);
  std::vector<std::pair<std::string, double>> questions;
  for (uint32_t i = 0; i < 9; ++i) questions.emplace_back(ToldEngine::Letters(100 + i, 12), 0.0);
  const ScriptedModel::Log log = AskTogether(*engine, questions);
  EXPECT_GT(log.upper_batches.size(), log.lower_batches.size());
}

TEST_P(ToldAnswerTest, ScoreOfAListIsTheTwinsHoweverItIsCutIntoSteps) {
  const std::string text = "bcd\nef\n\ngh i\nj<a>k\nlm\nb<q>cd\ne<a>f\ng\nhij k\nlm";
  std::vector<double> scores;
  // Steps of 1, 3 and 256 tokens, those of a list shorter.
  for (const int64_t step_tokens : {1, 3, 0}) {
    SCOPED_TRACE(step_tokens);
    const auto engine = Open(/*told_penalty=*/3, step_tokens * 4 * kChunksPerRead);
    const ScoreResult result = engine->Score("one\ntwo", text);
    const ScriptedModel::Log log = engine->model().Take();
    ASSERT_EQ(log.readers.size(), 1u);
    EXPECT_GT(engine->CompareWithTwin(log.readers[0]), 5);
    const std::vector<TokenId>& ids = log.readers[0].ids;
    const NetworkReference::Reading twin = engine->Twin(ids);
    ASSERT_LT(result.tokens.size(), ids.size());
    const size_t first = ids.size() - result.tokens.size();
    for (size_t i = 0; i < result.tokens.size(); ++i) {
      const Doubles& logits = twin.logits[first + i - 1];
      double sum = 0;
      for (const double logit : logits) sum += std::exp(logit);
      EXPECT_NEAR(result.tokens[i].second, logits[ids[first + i]] - std::log(sum), 1e-3) << i;
    }
    scores.push_back(result.log_likelihood);
  }
  for (const double score : scores) EXPECT_NEAR(score, scores[0], 1e-3);
  EXPECT_GT(std::fabs(Open(/*told_penalty=*/0)->Score("one\ntwo", text).log_likelihood - scores[0]),
            1e-2);
}

TEST_P(ToldAnswerTest, WithoutAPenaltyNothingIsTold) {
  const auto engine = Open(/*told_penalty=*/0);
  engine->Score("one\ntwo", "bcd\nef\n\ngh i\nj");
  const ScriptedModel::Log log = engine->model().Take();
  ASSERT_EQ(log.readers.size(), 1u);
  EXPECT_EQ(engine->CompareWithTwin(log.readers[0]), 0);
  EXPECT_EQ(log.upper_batches.size(), 1u) << "no step ends with a line";
}

}  // namespace
}  // namespace mneme
