#include "engine/quota.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

absl::Status CheckLimits(const std::string& whose, const QuotaLimits& limits) {
  const std::pair<const char*, int64_t> values[] = {
      {"text_bytes_max", limits.text_bytes_max},
      {"documents_max", limits.documents_max},
      {"ingest_bytes_per_second", limits.ingest_bytes_per_second},
      {"ingest_burst_bytes", limits.ingest_burst_bytes},
      {"readers_max", limits.readers_max},
      {"ingest_streams_max", limits.ingest_streams_max}};
  for (const auto& [name, value] : values) {
    if (value < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("quota ", name, " of ", whose, " is ", value, "; it must be 0 or more"));
    }
  }
  // A bucket that holds nothing never opens.
  if (limits.ingest_burst_bytes == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("quota ingest_burst_bytes of ", whose, " is 0; it must be above 0"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckAdmissionOptions(const AdmissionOptions& options) {
  RETURN_IF_ERROR(CheckLimits("all", options.quotas.all));
  RETURN_IF_ERROR(CheckLimits("each tenant", options.quotas.tenant));
  for (const auto& [tenant, limits] : options.quotas.tenants) {
    RETURN_IF_ERROR(CheckLimits(absl::StrCat("tenant ", tenant), limits));
  }
  const WatermarkOptions& marks = options.watermarks;
  // Written so that a NaN fails.
  if (!(marks.low > 0 && marks.low < marks.high && marks.high <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("watermarks ", marks.low, " and ", marks.high,
                                                   " of a limit are none: 0 < low < high <= 1"));
  }
  if (marks.free_high_bytes < 0 || (marks.free_low_bytes <= marks.free_high_bytes &&
                                    marks.free_low_bytes + marks.free_high_bytes > 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "free bytes of the low watermark, ", marks.free_low_bytes,
        ", must be more than those of the high one, ", marks.free_high_bytes, ", or both 0"));
  }
  if (options.slow_bytes_per_second <= 0 || !(options.sample_every_seconds > 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "slow_bytes_per_second ", options.slow_bytes_per_second, " and sample_every_seconds ",
        options.sample_every_seconds, " must be above 0"));
  }
  return absl::OkStatus();
}

const char* QuotaName(Quota quota) {
  switch (quota) {
    case Quota::kTextBytes:
      return "text_bytes";
    case Quota::kDocuments:
      return "documents";
    case Quota::kIngestRate:
      return "ingest_bytes_per_second";
    case Quota::kReaders:
      return "readers";
    case Quota::kIngestStreams:
      return "ingest_streams";
  }
  return "unknown";
}

int64_t QuotaLimits::of(Quota quota) const {
  switch (quota) {
    case Quota::kTextBytes:
      return text_bytes_max;
    case Quota::kDocuments:
      return documents_max;
    case Quota::kIngestRate:
      return ingest_bytes_per_second;
    case Quota::kReaders:
      return readers_max;
    case Quota::kIngestStreams:
      return ingest_streams_max;
  }
  return 0;
}

}  // namespace mneme
