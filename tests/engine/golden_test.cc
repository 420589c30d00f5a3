// End to end with the shipped bundle and the real store: the document of the golden vectors goes in
// as text, and the question finds and answers the pass key. (Long for a unit test: a real network
// runs, some seconds with sanitizers.)

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/engine.h"
#include "memory_store/rocksdb/rocksdb_chunk_store.h"

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
  ASSERT_TRUE(engine_->CreateMemory(memory, "").ok());
  auto writer = engine_->OpenWriter(document, {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE((*writer)->Append(0, text).ok());
  ASSERT_TRUE((*writer)->Seal().ok());
  const std::vector<ReadBarrier> barriers = {
      {.document = document, .visible_bytes = static_cast<int64_t>(text.size())}};

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

INSTANTIATE_TEST_SUITE_P(Precisions, GoldenTest,
                         ::testing::Values(Precision::kF32, Precision::kBf16),
                         [](const auto& tested) {
                           return tested.param == Precision::kF32 ? "F32" : "Bf16";
                         });

}  // namespace
}  // namespace mneme
