#include "engine/engine_metrics.h"

#include "absl/time/clock.h"
#include "engine/engine.h"

namespace mneme {
namespace {

Gauge& QueueDepth(Metrics& metrics, const char* queue, double limit) {
  metrics
      .AddGauge("engine_queue_limit", "Most that may wait in a queue of the engine.",
                {{"queue", queue}})
      .Set(limit);
  return metrics.AddGauge("engine_queue_depth", "What waits in a queue of the engine.",
                          {{"queue", queue}});
}

Histogram& BatchSize(Metrics& metrics, const char* stage) {
  return metrics.AddHistogram("engine_batch_size", "Items that went through a stage together.",
                              Metrics::CountBounds(), {{"stage", stage}});
}

Histogram& StageSecondsOf(Metrics& metrics, const char* stage) {
  return metrics.AddHistogram("engine_stage_seconds", "Time of one batch in a stage.",
                              Metrics::LatencyBounds(), {{"stage", stage}});
}

Counter& DerivedSegments(Metrics& metrics, const char* kind) {
  return metrics.AddCounter("derived_segments_total",
                            "Segments derived: whole ones, and open ones at the end of a text.",
                            {{"kind", kind}});
}

std::vector<double> ByteBounds() {
  std::vector<double> bounds;
  for (double bound = 256; bound <= 1 << 26; bound *= 4) bounds.push_back(bound);
  return bounds;
}

}  // namespace

EngineMetrics::EngineMetrics(Metrics& metrics, const EngineOptions& options)
    : registry(metrics),
      ingest_bytes(metrics.AddCounter("ingest_bytes_total", "Bytes of text made durable.")),
      ingest_tokens(metrics.AddCounter("ingest_tokens_total", "Tokens that became visible.")),
      ingest_chunks(metrics.AddCounter("ingest_chunks_total", "Chunks that became visible.")),
      derived_whole_segments(DerivedSegments(metrics, "whole")),
      derived_open_segments(DerivedSegments(metrics, "open")),
      derived_tokens(metrics.AddCounter(
          "derived_tokens_total",
          "Tokens run through the lower half on ingest, each time that they were.")),
      visible_lag_seconds(metrics.AddHistogram("durable_to_visible_seconds",
                                               "Time from text being durable to being visible.",
                                               Metrics::LatencyBounds())),
      writers(metrics.AddGauge("writers", "Documents that have a writer.")),
      commit_failures(metrics.AddCounter("commit_failures_total",
                                         "Pieces of text that could not be made durable.")),
      derive_failures(metrics.AddCounter("derive_failures_total",
                                         "Attempts to derive or to store segments that failed.")),
      commit_queue_bytes(
          QueueDepth(metrics, "commit_bytes", static_cast<double>(options.commit_queue_bytes_max))),
      segment_queue(QueueDepth(metrics, "segments", options.queue_segments_max)),
      segment_backlog_bytes(metrics.AddGauge("ingest_backlog_bytes",
                                             "Bytes accepted that are not yet cut into segments.")),
      readers_running(QueueDepth(metrics, "readers_running", options.readers_max)),
      readers_waiting(QueueDepth(metrics, "readers_waiting", options.readers_waiting_max)),
      read_steps(QueueDepth(metrics, "read_steps", options.readers_max)),
      commit_batch_documents(BatchSize(metrics, "commit")),
      commit_batch_bytes(
          metrics.AddHistogram("commit_batch_bytes", "Bytes of one synced write.", ByteBounds())),
      segment_batch(BatchSize(metrics, "segments")),
      question_batch(BatchSize(metrics, "questions")),
      decode_batch(BatchSize(metrics, "decode")),
      commit_seconds(StageSecondsOf(metrics, "commit")),
      encode_seconds(StageSecondsOf(metrics, "encode")),
      derive_seconds(StageSecondsOf(metrics, "derive")),
      put_seconds(StageSecondsOf(metrics, "put")),
      read_lower_seconds(StageSecondsOf(metrics, "read_lower")),
      scan_seconds(StageSecondsOf(metrics, "scan")),
      pin_seconds(StageSecondsOf(metrics, "pin")),
      look_seconds(StageSecondsOf(metrics, "look")),
      read_upper_seconds(StageSecondsOf(metrics, "read_upper")),
      rederive_read_seconds(StageSecondsOf(metrics, "rederive_read")),
      rederive_seconds(StageSecondsOf(metrics, "rederive")),
      rederive_put_seconds(StageSecondsOf(metrics, "rederive_put")),
      landmarks_scanned(metrics.AddCounter(
          "landmarks_scanned_total",
          "Landmarks read by scans; questions that share a scan count it once.")),
      generated_tokens(metrics.AddCounter("generated_tokens_total", "Tokens generated.")),
      pages_rederived(metrics.AddCounter(
          "pages_rederived_total", "Pages that were in no tier, or damaged, and derived again.")),
      tokens_rederived(metrics.AddCounter(
          "tokens_rederived_total", "Tokens that went through the network to derive pages again.")),
      pages_unavailable(
          metrics.AddCounter("pages_unavailable_total",
                             "Pages that a reader went on without: document deleted or damaged.")),
      passages_damaged(metrics.AddCounter(
          "passages_damaged_total",
          "Passages that questions chose and that were left out: their text is damaged.")),
      purges_pending(metrics.AddGauge("purges_pending",
                                      "Deletions of which some file or tier still has something.")),
      purge_oldest_seconds(metrics.AddGauge("purge_oldest_pending_seconds",
                                            "Age of the oldest of these deletions; 0: none.")),
      purges(metrics.AddCounter("purges_total",
                                "Deletions that left the last file and tier: receipts given.")),
      purge_failures(
          metrics.AddCounter("purge_failures_total", "Purges that failed and are tried again.")),
      purge_seconds(metrics.AddHistogram(
          "purge_seconds", "Time of a purge, of one or many deletions.", Metrics::LatencyBounds())),
      expired_documents(metrics.AddCounter("expired_documents_total",
                                           "Documents deleted because their time was over.")),
      recovery_documents(metrics.AddGauge("recovery_documents",
                                          "Documents that had to be derived again at the start.")),
      recovery_documents_left(
          metrics.AddGauge("recovery_documents_left", "Of these, the ones not done.")) {
  const auto limit = [&](const char* name, double value) {
    metrics
        .AddGauge("engine_limit", "A limit of the engine's configuration, in the unit of its name.",
                  {{"limit", name}})
        .Set(value);
  };
  limit("batch_segments_max", options.batch_segments_max);
  limit("batch_tokens_max", options.batch_tokens_max);
  limit("queue_segments_max", options.queue_segments_max);
  limit("commit_bytes_max", static_cast<double>(options.commit_bytes_max));
  limit("commit_queue_bytes_max", static_cast<double>(options.commit_queue_bytes_max));
  limit("writer_pending_bytes_max", static_cast<double>(options.writer_pending_bytes_max));
  limit("document_bytes_max", static_cast<double>(options.document_bytes_max));
  limit("documents_per_memory_max", static_cast<double>(options.documents_per_memory_max));
  limit("memories_per_tenant_max", static_cast<double>(options.memories_per_tenant_max));
  limit("memories_per_read_max", options.memories_per_read_max);
  limit("retrieve_k_max", options.retrieve_k_max);
  limit("generate_tokens_max", options.generate_tokens_max);
  limit("readers_max", options.readers_max);
  limit("readers_waiting_max", options.readers_waiting_max);
}

StageTimer::StageTimer(Histogram& histogram) : histogram_(histogram), start_(absl::Now()) {}

StageTimer::~StageTimer() { histogram_.Observe(seconds()); }

double StageTimer::seconds() const { return absl::ToDoubleSeconds(absl::Now() - start_); }

}  // namespace mneme
