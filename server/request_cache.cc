#include "server/request_cache.h"

#include <utility>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "server/error.h"

namespace mneme {

RequestCache::RequestCache(int entries_max, Clock& clock, Metrics& metrics)
    : entries_max_(entries_max),
      clock_(clock),
      entries_gauge_(
          metrics.AddGauge("request_ids", "Requests whose result is kept for a retry.")) {
  metrics.AddGauge("request_ids_limit", "Requests whose result is kept for a retry, at most.")
      .Set(entries_max);
}

absl::StatusOr<std::string> RequestCache::Run(
    absl::string_view method, absl::string_view request_id, absl::string_view request,
    const std::function<absl::StatusOr<std::string>()>& work) {
  if (request_id.empty()) return work();
  if (request_id.size() > kRequestIdBytesMax) {
    return FieldError("request_id", request_id,
                      absl::StrCat(request_id.size(), " bytes: at most ", kRequestIdBytesMax));
  }
  const std::string key = absl::StrCat(method, "\n", request_id);
  const uint64_t request_hash = absl::HashOf(request);
  {
    absl::MutexLock lock(&mutex_);
    Forget(clock_.Now());
    const auto [entry, is_new] = entries_.try_emplace(key);
    if (!is_new) {
      if (entry->second.request_hash != request_hash) {
        return FieldError("request_id", request_id,
                          absl::StrCat(Quoted(request_id), " was used with another request"));
      }
      if (entry->second.done) return entry->second.result;
      return WithRetryAfter(
          WithReason(absl::AbortedError(
                         absl::StrCat("request_id ", Quoted(request_id), " is still running")),
                     "REQUEST_RUNNING", {{"request_id", std::string(request_id)}}),
          absl::Milliseconds(100));
    }
    entry->second.request_hash = request_hash;
  }
  absl::StatusOr<std::string> result = work();
  absl::MutexLock lock(&mutex_);
  if (!result.ok()) {
    entries_.erase(key);
    return result;
  }
  Entry& entry = entries_[key];
  entry.done = true;
  entry.result = *result;
  by_age_.push_back({clock_.Now(), key});
  Forget(clock_.Now());
  entries_gauge_.Set(static_cast<double>(by_age_.size()));
  return result;
}

void RequestCache::Forget(absl::Time now) {
  while (!by_age_.empty() &&
         (by_age_.size() > entries_max_ || now - by_age_.front().time >= kKeep)) {
    entries_.erase(by_age_.front().key);
    by_age_.pop_front();
  }
}

}  // namespace mneme
