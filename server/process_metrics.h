// The process as a whole, read from /proc at scrape time: memory, descriptors, processor time,
// start time.

#ifndef MNEME_SERVER_PROCESS_METRICS_H_
#define MNEME_SERVER_PROCESS_METRICS_H_

#include <string>

#include "common/metrics.h"

namespace mneme {

// Adds process_* (names as every Prometheus client library has them) and
// mneme_build_info{version,commit,backend} = 1.
void AddProcessMetrics(Metrics& metrics, const std::string& backend);

}  // namespace mneme

#endif  // MNEME_SERVER_PROCESS_METRICS_H_
