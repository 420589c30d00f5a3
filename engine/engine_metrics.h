// EngineMetrics: every instrument of the engine, made once.

#ifndef MNEME_ENGINE_ENGINE_METRICS_H_
#define MNEME_ENGINE_ENGINE_METRICS_H_

#include "absl/time/time.h"
#include "common/metrics.h"

namespace mneme {

struct EngineOptions;

// Thread-safe, as its instruments are. `metrics` must outlive it.
struct EngineMetrics {
  // Also exports every limit of `options` as engine_limit{limit}.
  EngineMetrics(Metrics& metrics, const EngineOptions& options);

  Metrics& registry;

  // Ingest. Tokens and chunks count what became visible; derived_* count the work, with segments
  // that were derived again because their text grew.
  Counter& ingest_bytes;
  Counter& ingest_tokens;
  Counter& ingest_chunks;
  Counter& derived_whole_segments;
  Counter& derived_open_segments;
  Counter& derived_tokens;
  Histogram& visible_lag_seconds;
  Gauge& writers;
  Counter& commit_failures;
  Counter& derive_failures;

  // Queues, each beside its limit.
  Gauge& commit_queue_bytes;
  Gauge& segment_queue;
  Gauge& segment_backlog_bytes;
  Gauge& readers_running;
  Gauge& readers_waiting;
  Gauge& read_steps;

  // Batches.
  Histogram& commit_batch_documents;
  Histogram& commit_batch_bytes;
  Histogram& segment_batch;
  Histogram& question_batch;
  Histogram& decode_batch;

  // Latency by stage.
  Histogram& commit_seconds;
  Histogram& encode_seconds;
  Histogram& derive_seconds;
  Histogram& put_seconds;
  Histogram& read_lower_seconds;
  Histogram& scan_seconds;
  Histogram& pin_seconds;
  Histogram& look_seconds;
  Histogram& read_upper_seconds;
  // Pages derived again: the text of one segment, the network on a batch of them, its pages stored.
  Histogram& rederive_read_seconds;
  Histogram& rederive_seconds;
  Histogram& rederive_put_seconds;

  Counter& landmarks_scanned;
  Counter& generated_tokens;
  Counter& pages_rederived;
  Counter& tokens_rederived;
  Counter& pages_unavailable;
  Counter& passages_damaged;

  // Deletions that are not out of every file and tier yet, the age of the oldest; and those that
  // are.
  Gauge& purges_pending;
  Gauge& purge_oldest_seconds;
  Counter& purges;
  Counter& purge_failures;
  Histogram& purge_seconds;
  Counter& expired_documents;

  Gauge& recovery_documents;
  Gauge& recovery_documents_left;
};

// Observes the seconds of its own life. For one scope.
class StageTimer {
 public:
  explicit StageTimer(Histogram& histogram);
  ~StageTimer();
  StageTimer(const StageTimer&) = delete;
  StageTimer& operator=(const StageTimer&) = delete;

  double seconds() const;

 private:
  Histogram& histogram_;
  const absl::Time start_;
};

}  // namespace mneme

#endif  // MNEME_ENGINE_ENGINE_METRICS_H_
