#include "tests/engine/engine_harness.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <random>
#include <system_error>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/check.h"
#include "engine/segmenter.h"

namespace mneme {
namespace {

// Aborts with the status when it is an error.
void MustBeOk(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << status << std::endl;
  std::abort();
}

}  // namespace

TestWriter::TestWriter(Engine& engine, const std::string& document) {
  absl::StatusOr<std::unique_ptr<Writer>> writer = engine.OpenWriter(
      document, {.progress =
                     [this](const IngestProgress& progress) {
                       absl::MutexLock lock(&mutex_);
                       Enter();
                       ++progress_calls_;
                       misbehaved_ |= progress.durable_bytes < told_.durable_bytes ||
                                      progress.visible_bytes < told_.visible_bytes ||
                                      progress.durable_bytes < progress.visible_bytes ||
                                      (told_.sealed && !progress.sealed);
                       told_ = progress;
                       inside_ = false;
                     },
                 .ready =
                     [this] {
                       absl::MutexLock lock(&mutex_);
                       Enter();
                       ++ready_calls_;
                       inside_ = false;
                     },
                 .failed =
                     [this](absl::Status status) {
                       absl::MutexLock lock(&mutex_);
                       Enter();
                       failed_ = std::move(status);
                       inside_ = false;
                     }});
  MustBeOk(writer.status());
  writer_ = *std::move(writer);
  const IngestProgress progress = writer_->progress();
  absl::MutexLock lock(&mutex_);
  if (progress_calls_ == 0) told_ = progress;
}

TestWriter::~TestWriter() { writer_.reset(); }

void TestWriter::Enter() {
  misbehaved_ |= inside_;
  inside_ = true;
}

void TestWriter::Send(absl::string_view text) {
  while (!text.empty()) {
    if (!writer_->ready()) MNEME_CHECK(WaitReadyCallback());
    const absl::string_view piece = text.substr(0, 1 << 16);
    MustBeOk(writer_->Append(writer_->accepted_bytes(), piece));
    text.remove_prefix(piece.size());
  }
}

bool TestWriter::WaitDurable(int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  const auto reached = [&]()
                           ABSL_NO_THREAD_SAFETY_ANALYSIS { return told_.durable_bytes >= bytes; };
  return mutex_.AwaitWithTimeout(absl::Condition(&reached), kPatience);
}

bool TestWriter::WaitVisible(int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  const auto reached = [&]()
                           ABSL_NO_THREAD_SAFETY_ANALYSIS { return told_.visible_bytes >= bytes; };
  return mutex_.AwaitWithTimeout(absl::Condition(&reached), kPatience);
}

bool TestWriter::WaitSealed() {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&told_.sealed), kPatience);
}

bool TestWriter::WaitReadyCallback() {
  absl::MutexLock lock(&mutex_);
  const auto called = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return ready_calls_ > 0; };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&called), kPatience)) return false;
  --ready_calls_;
  return true;
}

absl::Status TestWriter::WaitFailed() {
  absl::MutexLock lock(&mutex_);
  const auto called = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return !failed_.ok(); };
  mutex_.AwaitWithTimeout(absl::Condition(&called), kPatience);
  return failed_;
}

absl::Status TestWriter::Failed() const {
  absl::MutexLock lock(&mutex_);
  return failed_;
}

IngestProgress TestWriter::told() const {
  absl::MutexLock lock(&mutex_);
  return told_;
}

int TestWriter::progress_calls() const {
  absl::MutexLock lock(&mutex_);
  return progress_calls_;
}

bool TestWriter::misbehaved() const {
  absl::MutexLock lock(&mutex_);
  return misbehaved_;
}

EngineOptions EngineHarness::TestOptions() {
  EngineOptions options;
  options.idle_flush = absl::Milliseconds(5);
  return options;
}

EngineHarness::EngineHarness(EngineOptions options) : options_(options) {
  std::string folder = std::filesystem::temp_directory_path() / "mneme_engine_XXXXXX";
  MNEME_CHECK(mkdtemp(folder.data()) != nullptr);
  folder_ = folder;
  rocksdb_options_.data_dir = folder_ + "/data";
  rocksdb_options_.block_cache_bytes = 8 << 20;
  rocksdb_options_.reserve_bytes = 0;
  const PageLayout layout = model_.page_layout();
  store_options_.page_bytes = layout.page_bytes();
  store_options_.landmark_bytes = layout.landmark_bytes();
  store_options_.chunk_tokens = layout.chunk_tokens;
  auto backend = CreateCpuBackend({.threads = 1});
  MustBeOk(backend.status());
  backend_ = *std::move(backend);
  Start();
}

EngineHarness::~EngineHarness() {
  for (const auto& gate : gates_) gate->Open();
  Stop();
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

void EngineHarness::Stop() {
  engine_.reset();
  store_.reset();
  faults_.reset();
  rocksdb_.reset();
}

void EngineHarness::Start() {
  auto rocksdb = OpenRocksDbChunkStore(rocksdb_options_, metrics_);
  MustBeOk(rocksdb.status());
  rocksdb_ = *std::move(rocksdb);
  faults_ = std::make_unique<FaultChunkStore>(*rocksdb_);
  store_options_.derivation_fingerprint = model_.derivation_fingerprint();
  Clock& clock = simulated_ ? static_cast<Clock&>(clock_) : RealClock();
  auto store = MemoryStore::Open(store_options_, *faults_, metrics_, clock);
  MustBeOk(store.status());
  store_ = *std::move(store);
  auto engine = Engine::Open(options_, model_, *backend_, *store_, metrics_, clock);
  MustBeOk(engine.status());
  engine_ = *std::move(engine);
}

void EngineHarness::LoseTable(Table table) {
  MNEME_CHECK(engine_ == nullptr);
  auto rocksdb = OpenRocksDbChunkStore(rocksdb_options_, metrics_);
  MustBeOk(rocksdb.status());
  std::vector<std::string> keys;
  MustBeOk((*rocksdb)->Scan(table, "", "", [&](absl::string_view key, absl::string_view) {
    keys.emplace_back(key);
    return true;
  }));
  WriteBatch batch;
  for (std::string& key : keys) batch.Delete(table, std::move(key));
  MustBeOk((*rocksdb)->Write(batch, Durability::kSynced));
}

Gate& EngineHarness::NewGate() { return *gates_.emplace_back(std::make_unique<Gate>()); }

int EngineHarness::Damage(Table table, const std::string& part) {
  WriteBatch batch;
  MustBeOk(rocksdb_->Scan(table, "", "", [&](absl::string_view key, absl::string_view value) {
    const size_t at = value.find(part);
    if (at == absl::string_view::npos) return true;
    std::string damaged(value);
    damaged[at] = static_cast<char>(damaged[at] ^ 1);
    batch.Put(table, std::string(key), std::move(damaged));
    return true;
  }));
  MustBeOk(rocksdb_->Write(batch, Durability::kSynced));
  return static_cast<int>(batch.ops.size());
}

void EngineHarness::CreateMemory(const std::string& id) {
  MustBeOk(engine_->CreateMemory(Memory(id), "").status());
}

void EngineHarness::Ingest(const std::string& memory, const std::string& document,
                           const std::string& text, bool seal) {
  TestWriter writer(*engine_, Document(memory, document));
  writer.Send(text);
  MustBeOk(seal ? writer->Seal() : writer->Flush());
  MNEME_CHECK(writer.WaitVisible(static_cast<int64_t>(text.size())));
  MNEME_CHECK(!seal || writer.WaitSealed());
  MNEME_CHECK(!writer.misbehaved());
}

void EngineHarness::Append(const std::string& memory, const std::string& document,
                           const std::string& text) {
  TestWriter writer(*engine_, Document(memory, document));
  const int64_t end = writer->accepted_bytes() + static_cast<int64_t>(text.size());
  writer.Send(text);
  MustBeOk(writer->Flush());
  MNEME_CHECK(writer.WaitVisible(end));
}

bool EngineHarness::WaitReady() {
  const absl::Time until = absl::Now() + kPatience;
  while (!engine_->Ready().ok() || Metric("mneme_recovery_documents_left") != 0) {
    if (absl::Now() > until) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return true;
}

void EngineHarness::RunTogether(const std::function<void()>& first,
                                const std::vector<std::function<void()>>& others) {
  Gate& gate = NewGate();
  model().OnRead([&gate] {
    gate.Pass();
    return absl::OkStatus();
  });
  std::vector<std::thread> threads;
  threads.emplace_back(first);
  EXPECT_TRUE(gate.WaitArrived(1));
  for (const std::function<void()>& other : others) threads.emplace_back(other);
  EXPECT_TRUE(WaitMetric("mneme_engine_queue_depth{queue=\"read_steps\"}",
                         static_cast<double>(others.size())));
  gate.Open();
  for (std::thread& thread : threads) thread.join();
}

bool EngineHarness::WaitMetric(const std::string& name_and_labels, double value) {
  const absl::Time until = absl::Now() + kPatience;
  while (Metric(name_and_labels) != value) {
    if (absl::Now() > until) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return true;
}

bool EngineHarness::WaitMetricAtLeast(const std::string& name_and_labels, double value) {
  const absl::Time until = absl::Now() + kPatience;
  while (Metric(name_and_labels) < value) {
    if (absl::Now() > until) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return true;
}

double EngineHarness::Metric(const std::string& name_and_labels) const {
  for (absl::string_view line : absl::StrSplit(metrics_.Expose(), '\n')) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(line, absl::MaxSplits(' ', 1));
    if (parts.first == name_and_labels) return std::stod(std::string(parts.second));
  }
  return -1;
}

std::string EngineHarness::DerivedDiffers(const std::string& memory, const std::string& document,
                                          const std::string& text) {
  const auto memory_info = store_->GetMemory("default", memory);
  if (!memory_info.ok()) return memory_info.status().ToString();
  const auto info = store_->GetDocument(memory_info->uid, document);
  if (!info.ok()) return info.status().ToString();
  const auto size = static_cast<int64_t>(text.size());
  if (info->durable_bytes != size) {
    return absl::StrCat("durable_bytes ", info->durable_bytes, ", text ", size);
  }
  const auto stored = store_->ReadText(info->uid, 0, size);
  if (!stored.ok()) return stored.status().ToString();
  if (*stored != text) return "text differs";
  if (info->visible_bytes != size) {
    return absl::StrCat("visible_bytes ", info->visible_bytes, ", text ", size);
  }

  // The same, at one go.
  const SegmentShape shape = SegmentShape::Of(model_);
  std::vector<Token> tokens;
  model_.tokenizer().Encode(text, &tokens);
  std::vector<TokenId> ids = {shape.document_id};
  std::vector<int64_t> begins = {0};
  for (const Token& token : tokens) {
    int64_t begin = token.byte_begin;
    while (begin > 0 && begin < size && (text[static_cast<size_t>(begin)] & 0xC0) == 0x80) --begin;
    ids.push_back(token.id);
    begins.push_back(begin);
  }
  if (text.empty()) ids.clear();
  if (info->token_count != static_cast<int64_t>(ids.size())) {
    return absl::StrCat("token_count ", info->token_count, ", expected ", ids.size());
  }
  const auto view = store_->View({memory_info->uid});
  if (!view.ok()) return view.status().ToString();
  int64_t row = 0;  // of the view, at the document's first chunk
  while (row < view->chunk_count() && view->Locate(row).address.document != info->uid) ++row;
  std::vector<const uint8_t*> landmarks;
  for (const LandmarkSlab& slab : view->slabs()) {
    for (int64_t i = 0; i < slab.row_count; ++i) {
      landmarks.push_back(static_cast<const uint8_t*>(slab.rows) +
                          i * store_options_.landmark_bytes);
    }
  }
  const auto segment_tokens = static_cast<size_t>(shape.segment_tokens);
  const auto chunk_tokens = static_cast<size_t>(shape.chunk_tokens);
  int64_t chunk = 0;
  const FakeModel fresh;  // so that hooks and counts of the model under test stay as they are
  for (size_t first = 0; first < ids.size(); first += segment_tokens) {
    const absl::Span<const TokenId> segment =
        absl::MakeConstSpan(ids).subspan(first, segment_tokens);
    std::vector<SegmentChunks> chunks;
    MustBeOk(fresh.ForwardLower(absl::MakeConstSpan(&segment, 1), &chunks));
    for (int c = 0; c < chunks[0].chunk_count; ++c, ++chunk, ++row) {
      if (row >= view->chunk_count()) return absl::StrCat("chunk ", chunk, " is missing");
      const ChunkText found = view->Locate(row);
      const size_t token = first + static_cast<size_t>(c) * chunk_tokens;
      const int64_t begin = begins[token];
      const int64_t end =
          token + chunk_tokens < begins.size() ? begins[token + chunk_tokens] : size;
      if (found.address != ChunkAddress{info->uid, chunk} || found.byte_begin != begin ||
          found.byte_end != end) {
        return absl::StrCat("chunk ", chunk, " is chunk ", found.address.chunk_index,
                            " of document ", static_cast<uint64_t>(found.address.document),
                            ", bytes ", found.byte_begin, " to ", found.byte_end, "; expected ",
                            begin, " to ", end);
      }
      if (std::memcmp(landmarks[static_cast<size_t>(row)],
                      chunks[0].landmarks.data() + c * store_options_.landmark_bytes,
                      static_cast<size_t>(store_options_.landmark_bytes)) != 0) {
        return absl::StrCat("landmark of chunk ", chunk, " differs");
      }
    }
  }
  if (info->chunk_count != chunk) {
    return absl::StrCat("chunk_count ", info->chunk_count, ", expected ", chunk);
  }
  return "";
}

std::string RandomQuestion(uint64_t seed, int count) {
  static constexpr const char* kWords[] = {"the",  "wind", "from",  "down", "every", "ship",
                                           "that", "in",   "night", "and",  "north", "passed"};
  std::mt19937_64 random(seed);
  std::string question;
  for (int i = 0; i < count; ++i) {
    question += i == 0 ? "" : " ";
    question += kWords[random() % std::size(kWords)];
  }
  return question;
}

std::string RandomText(uint64_t seed, int count) {
  static constexpr const char* kWords[] = {
      "the",    "lighthouse", "keeper", "wrote",  "down", "every", "ship",         "that",
      "passed", "in",         "the",    "night",  "and",  "wind",  "from",         "north",
      "Zürich", "naïve",      "日本語", "emoji",  "😀🚀",   "ß",     "Ελληνικά",     "\n\n",
      "\t",     "    ",       "0xdead", "3.1415", "x",    "I",     "unbelievably", "∑∫√"};
  std::mt19937_64 random(seed);
  std::string text;
  for (int i = 0; i < count; ++i) {
    const uint64_t draw = random();
    if (draw % 97 == 0) {
      for (uint64_t j = 0; j < 20 + draw / 97 % 60; ++j) {
        text += static_cast<char>('a' + random() % 26);
      }
    } else {
      text += kWords[draw / 97 % std::size(kWords)];
    }
    if (draw % 13 != 0) text += ' ';
  }
  return text;
}

}  // namespace mneme
