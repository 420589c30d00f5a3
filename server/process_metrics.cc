#include "server/process_metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "mneme_version.h"

namespace mneme {
namespace {

prometheus::MetricFamily Family(std::string name, std::string help, prometheus::MetricType type,
                                double value) {
  prometheus::MetricFamily family{std::move(name), std::move(help), type, {}};
  prometheus::ClientMetric metric;
  metric.gauge.value = value;
  metric.counter.value = value;
  family.metric.push_back(std::move(metric));
  return family;
}

double OpenDescriptors() {
  std::error_code error;
  double count = 0;
  for (auto it = std::filesystem::directory_iterator("/proc/self/fd", error);
       !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    ++count;
  }
  return count > 0 ? count - 1 : 0;  // without the one that lists them
}

// Field `number` of /proc/self/stat as proc(5) counts them, from 1; only those after the name.
double StatField(int number) {
  std::ifstream file("/proc/self/stat");
  std::ostringstream contents;
  contents << file.rdbuf();
  const std::string text = contents.str();
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return 0;
  const std::vector<std::string> fields =
      absl::StrSplit(text.substr(name_end + 1), ' ', absl::SkipEmpty());
  const size_t index = number - 3;
  double value = 0;
  if (index >= fields.size() || !absl::SimpleAtod(fields[index], &value)) return 0;
  return value;
}

// Owned by the Metrics that scrape it.
class ProcessCollectable final : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override {
    using prometheus::MetricType;
    const double page_bytes = static_cast<double>(sysconf(_SC_PAGESIZE));
    const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
    rlimit descriptors = {};
    getrlimit(RLIMIT_NOFILE, &descriptors);
    return {
        Family("process_cpu_seconds_total", "User and system processor time spent, in seconds.",
               MetricType::Counter, (StatField(14) + StatField(15)) / ticks),
        Family("process_resident_memory_bytes", "Resident memory size in bytes.", MetricType::Gauge,
               StatField(24) * page_bytes),
        Family("process_virtual_memory_bytes", "Virtual memory size in bytes.", MetricType::Gauge,
               StatField(23)),
        Family("process_threads", "Threads of the process.", MetricType::Gauge, StatField(20)),
        Family("process_open_fds", "Open file descriptors.", MetricType::Gauge, OpenDescriptors()),
        Family("process_max_fds", "File descriptors that may be open.", MetricType::Gauge,
               static_cast<double>(descriptors.rlim_cur)),
        Family("process_start_time_seconds", "When the process started, Unix time in seconds.",
               MetricType::Gauge, start_seconds_),
    };
  }

 private:
  const double start_seconds_ = absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch());
};

}  // namespace

void AddProcessMetrics(Metrics& metrics, const std::string& backend) {
  metrics.AddCollectable(std::make_shared<ProcessCollectable>());
  metrics
      .AddGauge("build_info", "Always 1; the labels say what runs.",
                {{"version", kMnemeVersion}, {"commit", kMnemeCommit}, {"backend", backend}})
      .Set(1);
}

}  // namespace mneme
