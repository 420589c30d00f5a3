// Quotas: what a tenant, and all of them together, may store and have under way; and what admission
// says of their use. Plain data.

#ifndef MNEME_ENGINE_QUOTA_H_
#define MNEME_ENGINE_QUOTA_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/watermark.h"

namespace mneme {

enum class Quota { kTextBytes, kDocuments, kIngestRate, kReaders, kIngestStreams };
inline constexpr int kQuotaCount = 5;
// "text_bytes", "documents", "ingest_bytes_per_second", "readers", "ingest_streams".
const char* QuotaName(Quota quota);

// 0: no limit.
struct QuotaLimits {
  int64_t text_bytes_max = 0;
  int64_t documents_max = 0;
  // Text beyond it is not refused: streams are read more slowly. What may come at once before that.
  int64_t ingest_bytes_per_second = 0;
  int64_t ingest_burst_bytes = int64_t{8} << 20;
  // Questions, and Ingest streams, at one time.
  int64_t readers_max = 0;
  int64_t ingest_streams_max = 0;

  int64_t of(Quota quota) const;
  friend bool operator==(const QuotaLimits&, const QuotaLimits&) = default;
};

struct QuotaOptions {
  QuotaLimits all;     // all tenants together
  QuotaLimits tenant;  // each tenant that `tenants` does not name
  // Only these have metrics of their own.
  std::map<std::string, QuotaLimits> tenants;
};

struct AdmissionOptions {
  QuotaOptions quotas;
  WatermarkOptions watermarks;
  // Limits of the resources that the watermarks are shares of; 0: none.
  int64_t disk_bytes_max = 0;
  int64_t host_landmark_bytes_max = 0;
  int64_t device_landmark_bytes_max = 0;
  // Of all ingest when a resource comes to its low mark; from there it falls to a fiftieth at the
  // high one.
  int64_t slow_bytes_per_second = int64_t{4} << 20;
  // How often resources are looked at.
  double sample_every_seconds = 1;
};

// INVALID_ARGUMENT names the value that is not allowed: marks out of order, a limit below 0.
absl::Status CheckAdmissionOptions(const AdmissionOptions& options);

struct QuotaUse {
  std::string tenant;  // empty: all
  Quota quota{};
  int64_t used = 0;
  int64_t limit = 0;  // 0: none
};

struct WatermarkUse {
  ResourceUse use;
  Watermark::State state{};
  int64_t free_needed_bytes = -1;  // as Watermark's
};

struct AdmissionStatus {
  std::vector<QuotaUse> quotas;  // all first, then the configured tenants
  std::vector<WatermarkUse> watermarks;
};

}  // namespace mneme

#endif  // MNEME_ENGINE_QUOTA_H_
