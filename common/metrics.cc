#include "common/metrics.h"

#include <utility>

#include <prometheus/text_serializer.h>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

namespace mneme {

struct Metrics::Impl {
  prometheus::Registry registry{prometheus::Registry::InsertBehavior::Merge};
  mutable absl::Mutex mutex;
  std::vector<std::shared_ptr<prometheus::Collectable>> collectables ABSL_GUARDED_BY(mutex);
};

Metrics::Metrics() : impl_(std::make_unique<Impl>()) {}
Metrics::~Metrics() = default;

Counter& Metrics::AddCounter(absl::string_view name, absl::string_view help,
                             const MetricLabels& labels) {
  return prometheus::BuildCounter()
      .Name(absl::StrCat("mneme_", name))
      .Help(std::string(help))
      .Register(impl_->registry)
      .Add(labels);
}

Gauge& Metrics::AddGauge(absl::string_view name, absl::string_view help,
                         const MetricLabels& labels) {
  return prometheus::BuildGauge()
      .Name(absl::StrCat("mneme_", name))
      .Help(std::string(help))
      .Register(impl_->registry)
      .Add(labels);
}

Histogram& Metrics::AddHistogram(absl::string_view name, absl::string_view help,
                                 std::vector<double> bounds, const MetricLabels& labels) {
  return prometheus::BuildHistogram()
      .Name(absl::StrCat("mneme_", name))
      .Help(std::string(help))
      .Register(impl_->registry)
      .Add(labels, std::move(bounds));
}

void Metrics::AddCollectable(std::shared_ptr<prometheus::Collectable> collectable) {
  absl::MutexLock lock(&impl_->mutex);
  impl_->collectables.push_back(std::move(collectable));
}

std::string Metrics::Expose() const {
  std::vector<std::shared_ptr<prometheus::Collectable>> collectables;
  {
    absl::MutexLock lock(&impl_->mutex);
    collectables = impl_->collectables;
  }
  auto families = impl_->registry.Collect();
  for (const auto& collectable : collectables) {
    auto more = collectable->Collect();
    families.insert(families.end(), std::make_move_iterator(more.begin()),
                    std::make_move_iterator(more.end()));
  }
  return prometheus::TextSerializer().Serialize(families);
}

std::vector<double> Metrics::LatencyBounds() {
  return {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
          0.1,    0.25,    0.5,    1,     2.5,    5,     10,   30,    60};
}

std::vector<double> Metrics::CountBounds() {
  std::vector<double> bounds;
  for (double bound = 1; bound <= 65536; bound *= 2) bounds.push_back(bound);
  return bounds;
}

}  // namespace mneme
