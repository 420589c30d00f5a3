// Prometheus metrics: one registry a process, instruments owned by the component that counts.
//
//   Counter& hits = metrics.AddCounter("chunk_cache_hits_total", "Pages found in a tier.",
//   {{"tier", "host"}});
//
// Every name gets the prefix "mneme_". Base units (seconds, bytes), help text always. Asking twice
// for one name and label set returns the same instrument. Thread-safe; instruments live as long as
// the Metrics object.

#ifndef MNEME_COMMON_METRICS_H_
#define MNEME_COMMON_METRICS_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include "absl/strings/string_view.h"

namespace mneme {

using Counter = prometheus::Counter;
using Gauge = prometheus::Gauge;
using Histogram = prometheus::Histogram;
using MetricLabels = std::map<std::string, std::string>;

class Metrics {
 public:
  Metrics();
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  Counter& AddCounter(absl::string_view name, absl::string_view help,
                      const MetricLabels& labels = {});
  Gauge& AddGauge(absl::string_view name, absl::string_view help, const MetricLabels& labels = {});
  // `bounds`: upper bucket bounds in the metric's base unit, ascending.
  Histogram& AddHistogram(absl::string_view name, absl::string_view help,
                          std::vector<double> bounds, const MetricLabels& labels = {});

  // Collectables beside the registry (a store's own statistics, read at scrape time).
  void AddCollectable(std::shared_ptr<prometheus::Collectable> collectable);

  // Everything registered, in Prometheus text format.
  std::string Expose() const;

  // 100 us .. 60 s, for request and I/O latencies in seconds.
  static std::vector<double> LatencyBounds();
  // 1, 2, 4 .. 65536, for batch sizes and queue lengths.
  static std::vector<double> CountBounds();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mneme

#endif  // MNEME_COMMON_METRICS_H_
