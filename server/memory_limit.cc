#include "server/memory_limit.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/log.h"
#include "engine/read_batcher.h"
#include "memory_store/rocksdb/rocksdb_chunk_store.h"

namespace mneme {
namespace {

// Of a landmark's row beside the landmark, of a document and of a memory in the catalog, about.
constexpr int64_t kRowBytes = 16;
constexpr int64_t kDocumentBytes = 1024;
constexpr int64_t kMemoryBytes = 4096;
// Threads that run passes beside the backend's own: of the scheduler, of readers, of whoever
// derives tails, and of repairs.
constexpr int64_t kPassCallers = 4;

}  // namespace

int64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  int64_t size_pages = 0, resident_pages = 0;
  if (!(file >> size_pages >> resident_pages)) return 0;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

std::vector<MemoryPart> MemoryLimit(const ServerConfig& config, const MemoryUsers& users) {
  const EngineOptions& engine = config.engine;
  const PageLayout layout = users.model.page_layout();
  const MemoryStore::Totals totals = users.store.totals();
  // Text on its way to the log, and batches of segments: one being derived and one for each thread
  // that puts what was.
  const int64_t batch_chunks = engine.batch_tokens_max / layout.chunk_tokens;
  const int64_t queue_bytes =
      engine.commit_queue_bytes_max +
      (1 + engine.put_threads) * batch_chunks * (layout.page_bytes() + layout.landmark_bytes());
  // Logits of one batch of Score or of prompts, made by the batch thread and taken by the readers.
  const int64_t logit_rows =
      std::clamp<int64_t>(int64_t{engine.readers_max} * ReadBatcher::kStepTokensMax,
                          ReadBatcher::kStepTokensMax, ReadBatcher::kBatchRowsMax);
  int64_t reader_bytes = 2 * logit_rows * users.model.config().vocab_size * int64_t{4};
  int64_t pass_bytes = 0;
  if (!users.backend.has_own_memory()) {
    reader_bytes += engine.readers_max * users.model.reader_bytes();
    const int64_t cores = std::max<int64_t>(1, std::thread::hardware_concurrency());
    const int64_t threads = config.threads > 0 ? config.threads : cores;
    pass_bytes = (threads - 1 + kPassCallers) * users.model.pass_bytes();
  }
  return {{"program", users.program_bytes},
          {"pages", config.host_page_bytes_max},
          {"block_cache", config.block_cache_bytes},
          {"write_buffers", kRocksDbWriteBufferBytes},
          {"queues", queue_bytes},
          {"readers", reader_bytes},
          {"passes", pass_bytes},
          {"landmarks", totals.chunks * (layout.landmark_bytes() + kRowBytes) +
                            totals.documents * kDocumentBytes + totals.memories * kMemoryBytes +
                            users.store.tail_bytes()}};
}

void LogMemoryLimit(const std::vector<MemoryPart>& parts) {
  int64_t sum = 0;
  std::string what;
  for (const MemoryPart& part : parts) {
    sum += part.bytes;
    absl::StrAppend(&what, what.empty() ? "" : " ", part.name, "=", part.bytes);
  }
  LogInfo("server", "memory limit", {{"bytes", absl::StrCat(sum)}, {"parts", what}});
}

// Shared with Metrics, which may outlive what `parts` asks.
class MemoryLimitMetric::Collectable final : public prometheus::Collectable {
 public:
  explicit Collectable(std::function<std::vector<MemoryPart>()> parts) : parts_(std::move(parts)) {}
  void Detach() {
    absl::MutexLock lock(&mutex_);
    parts_ = nullptr;
  }
  std::vector<prometheus::MetricFamily> Collect() const override {
    prometheus::MetricFamily sum{
        "mneme_memory_limit_bytes",
        "What the process may come to in memory, by its configuration and what is stored.",
        prometheus::MetricType::Gauge,
        {}};
    prometheus::MetricFamily parts{"mneme_memory_limit_part_bytes",
                                   "The parts of mneme_memory_limit_bytes.",
                                   prometheus::MetricType::Gauge,
                                   {}};
    prometheus::ClientMetric total;
    absl::MutexLock lock(&mutex_);
    if (!parts_) return {};
    for (const MemoryPart& part : parts_()) {
      prometheus::ClientMetric metric;
      metric.label.push_back({"part", part.name});
      metric.gauge.value = static_cast<double>(part.bytes);
      total.gauge.value += metric.gauge.value;
      parts.metric.push_back(std::move(metric));
    }
    sum.metric.push_back(std::move(total));
    return {std::move(sum), std::move(parts)};
  }

 private:
  mutable absl::Mutex mutex_;
  std::function<std::vector<MemoryPart>()> parts_ ABSL_GUARDED_BY(mutex_);
};

MemoryLimitMetric::MemoryLimitMetric(Metrics& metrics,
                                     std::function<std::vector<MemoryPart>()> parts)
    : collectable_(std::make_shared<Collectable>(std::move(parts))) {
  metrics.AddCollectable(collectable_);
}

MemoryLimitMetric::~MemoryLimitMetric() { collectable_->Detach(); }

}  // namespace mneme
