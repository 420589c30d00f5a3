// End to end with the shipped bundle and the real store: the document of the golden vectors goes in
// as text, and the question finds and answers the pass key. (Long for a unit test: a real network
// runs, some seconds with sanitizers.)

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/engine.h"
#include "memory_store/rocksdb/rocksdb_chunk_store.h"
#include "model/bundle.h"
#include "tests/reference/chunk_weights_reference.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

// The document that the golden vectors were made from.
std::string GoldenText() {
  constexpr const char* kWinds[] = {"north", "east", "south", "west"};
  std::vector<std::string> rows;
  for (int i = 1; i <= 18; ++i) {
    rows.push_back(absl::StrFormat(
        "The lighthouse log for day %d records wind from the %s, a swell of %d feet and %d passing "
        "ships.",
        i, kWinds[i % 4], 2 + i * 7 % 11, i * 13 % 9));
  }
  rows.insert(rows.begin() + 7, "The pass key is 40917. Remember it. 40917 is the pass key.");
  rows.insert(rows.begin() + 12, "One of the special magic numbers for amber-quill is: 883120.");
  return absl::StrJoin(rows, " ");
}

class GoldenTest : public ::testing::TestWithParam<Precision> {
 protected:
  void SetUp() override {
    std::string folder = std::filesystem::temp_directory_path() / "mneme_golden_XXXXXX";
    ASSERT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    auto backend = CreateCpuBackend({});
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    auto bundle = LoadBundle(MNEME_SOURCE_DIR "/models/mneme-small");
    ASSERT_TRUE(bundle.ok()) << bundle.status();
    auto model = Model::Create(*std::move(bundle), *backend_, {.precision = GetParam()});
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    auto chunk_store = OpenRocksDbChunkStore({.data_dir = folder_, .reserve_bytes = 0}, metrics_);
    ASSERT_TRUE(chunk_store.ok()) << chunk_store.status();
    chunk_store_ = *std::move(chunk_store);
    const PageLayout layout = model_->page_layout();
    auto store = MemoryStore::Open({.page_bytes = layout.page_bytes(),
                                    .landmark_bytes = layout.landmark_bytes(),
                                    .derivation_fingerprint = model_->derivation_fingerprint()},
                                   *chunk_store_, metrics_, RealClock());
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    auto engine = Engine::Open({}, *model_, *backend_, *store_, metrics_, RealClock());
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }
  void TearDown() override {
    engine_.reset();
    store_.reset();
    chunk_store_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  // A new memory with the text as its only document; whoever waits for `barriers` finds all of it.
  void Remember(const std::string& memory, const std::string& document, const std::string& text,
                std::vector<ReadBarrier>* barriers) {
    ASSERT_TRUE(engine_->CreateMemory(memory, "").ok());
    auto writer = engine_->OpenWriter(document, {});
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE((*writer)->Append(0, text).ok());
    ASSERT_TRUE((*writer)->Seal().ok());
    *barriers = {{.document = document, .visible_bytes = static_cast<int64_t>(text.size())}};
  }

  std::string folder_;
  Metrics metrics_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<ChunkStore> chunk_store_;
  std::unique_ptr<MemoryStore> store_;
  std::unique_ptr<Engine> engine_;
};

TEST_P(GoldenTest, PassKeyIsFoundAndAnswered) {
  const std::string memory = "tenants/default/memories/golden";
  const std::string document = memory + "/documents/log";
  const std::string question = "What is the pass key? The pass key is";
  const std::string text = GoldenText();
  std::vector<ReadBarrier> barriers;
  ASSERT_NO_FATAL_FAILURE(Remember(memory, document, text, &barriers));

  const auto found = engine_->Retrieve(
      {.memories = {memory}, .question = question, .k = 3, .barriers = barriers}, {});
  ASSERT_TRUE(found.ok()) << found.status();
  // 550 tokens with the document token, as the golden vectors say.
  EXPECT_EQ(found->chunks_scanned, 9);
  EXPECT_EQ(engine_->GetDocument(document)->token_count, 550);
  ASSERT_FALSE(found->passages.empty());
  EXPECT_THAT(found->passages[0].text, HasSubstr("40917"));

  std::string answer;
  bool read_the_key = false;
  const auto generated = engine_->Generate(
      {.memories = {memory}, .question = question, .max_tokens = 8}, {}, [&](GeneratePiece piece) {
        answer += piece.text;
        for (const Passage& passage : piece.passages) {
          read_the_key |= passage.text.find("40917") != std::string::npos;
        }
        return true;
      });
  ASSERT_TRUE(generated.ok()) << generated.status();
  EXPECT_THAT(answer, HasSubstr("40917"));
  EXPECT_TRUE(read_the_key);

  // With the memory the answer is likely; without, it is not.
  const auto with =
      engine_->Score({.memories = {memory}, .prompt = question, .text = " 40917"}, {});
  const auto without = engine_->Score({.prompt = question, .text = " 40917"}, {});
  ASSERT_TRUE(with.ok()) << with.status();
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_GT(with->log_likelihood, without->log_likelihood + 3);
}

// What a rerank looks at and what the answer's first token reads are the same row and pages.
TEST_P(GoldenTest, RerankWeighsAsTheAnswerDoes) {
  const std::string memory = "tenants/default/memories/golden";
  const std::string document = memory + "/documents/log";
  const std::string text = GoldenText();
  std::vector<ReadBarrier> barriers;
  ASSERT_NO_FATAL_FAILURE(Remember(memory, document, text, &barriers));
  ASSERT_GT(model_->config().look_heads, 0);
  const auto chunks_per_read = static_cast<size_t>(model_->config().chunks_per_read);

  for (const char* question :
       {"What is the pass key? The pass key is",
        "What is the special magic number for amber-quill?", "How many ships passed on day 3?"}) {
    SCOPED_TRACE(question);
    std::vector<RetrieveResult> found;
    for (const bool rerank : {false, true}) {
      auto result = engine_->Retrieve({.memories = {memory},
                                       .question = question,
                                       .k = 9,
                                       .rerank = rerank,
                                       .barriers = barriers},
                                      {});
      ASSERT_TRUE(result.ok()) << result.status();
      ASSERT_EQ(result->passages.size(), 9u);
      found.push_back(*std::move(result));
    }
    std::map<int64_t, const Passage*> reranked;  // by chunk
    for (const Passage& passage : found[1].passages) reranked[passage.chunk_index] = &passage;
    for (const Passage& passage : found[0].passages) {
      EXPECT_EQ(reranked.at(passage.chunk_index)->score, passage.score);
    }
    for (size_t i = 1; i < 9; ++i) {
      EXPECT_GE(*found[1].passages[i - 1].rerank_score, *found[1].passages[i].rerank_score);
    }

    // By the new scores of what the network reads, from the newest chunk back.
    std::vector<const Passage*> read;
    for (size_t i = 0; i < chunks_per_read; ++i) {
      read.push_back(reranked.at(found[0].passages[i].chunk_index));
    }
    std::sort(read.begin(), read.end(),
              [](const Passage* a, const Passage* b) { return a->chunk_index > b->chunk_index; });
    std::vector<double> scores;
    for (const Passage* passage : read) scores.push_back(*passage->rerank_score);
    const std::vector<double> want = ChunkWeightsReference(scores, model_->config().newest_margin);
    std::map<int64_t, double> weights;  // those that an answer names
    for (size_t i = 0; i < read.size(); ++i) {
      EXPECT_NEAR(read[i]->weight, want[i], 1e-5);
      if (read[i]->weight > 0.01) weights[read[i]->chunk_index] = read[i]->weight;
    }
    // Any token but the space with which answers begin, for that makes no piece.
    std::map<int64_t, double> answered;
    for (uint64_t seed = 0; answered.empty() && seed < 10; ++seed) {
      const auto generated = engine_->Generate({.memories = {memory},
                                                .question = question,
                                                .max_tokens = 1,
                                                .temperature = 10,
                                                .seed = seed},
                                               {}, [&](GeneratePiece piece) {
                                                 for (const Passage& passage : piece.passages) {
                                                   answered[passage.chunk_index] = passage.weight;
                                                 }
                                                 return true;
                                               });
      ASSERT_TRUE(generated.ok()) << generated.status();
    }
    ASSERT_FALSE(answered.empty());
    ASSERT_EQ(answered.size(), weights.size());
    for (const auto& [chunk, weight] : answered) {
      // In bf16 mode a scan for one query rounds otherwise than one for all of a prompt.
      EXPECT_NEAR(weight, weights[chunk], 1e-5) << "chunk " << chunk;
    }
  }
}

// A list that says a value twice, as the specification scores it: each chunk is told once.
TEST_P(GoldenTest, AListIsScoredAsTheSpecificationTellsIt) {
  const std::string memory = "tenants/default/memories/golden";
  std::vector<ReadBarrier> barriers;
  ASSERT_NO_FATAL_FAILURE(Remember(memory, memory + "/documents/log", GoldenText(), &barriers));
  const auto golden = SafetensorsFile::Open(MNEME_SOURCE_DIR "/tests/data/golden.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.status();
  const auto values_of = [&](const std::string& name) {
    const TensorView& tensor = (*golden)->tensors().at(name);
    std::vector<float> values(static_cast<size_t>(tensor.elements()));
    std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
    return values;
  };
  const std::vector<float> want = values_of("list.log_likelihoods");
  const std::vector<float> untold = values_of("list.untold");

  const auto scored =
      engine_->Score({.memories = {memory},
                      .prompt = "What are all the special magic numbers for amber-quill?",
                      .text = " 883120\n 883120\n",
                      .barriers = barriers},
                     {});
  ASSERT_TRUE(scored.ok()) << scored.status();
  ASSERT_EQ(scored->tokens.size(), want.size());
  // In f32 sums are in another order; in bf16 a logit is off by some hundredths (docs/model.md).
  const double tolerance = GetParam() == Precision::kF32 ? 1e-3 : 0.2;
  double told = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_NEAR(scored->tokens[i].second, want[i], tolerance) << "token " << i;
    told = std::max(told, std::abs(double{want[i]} - untold[i]));
  }
  EXPECT_GT(told, 5 * tolerance) << "a list without told_penalty would pass";
}

INSTANTIATE_TEST_SUITE_P(Precisions, GoldenTest,
                         ::testing::Values(Precision::kF32, Precision::kBf16),
                         [](const auto& tested) {
                           return tested.param == Precision::kF32 ? "F32" : "Bf16";
                         });

}  // namespace
}  // namespace mneme
