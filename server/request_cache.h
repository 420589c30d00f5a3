// Results of requests that carried a request_id, so that a retry returns the first result instead
// of doing it again.

#ifndef MNEME_SERVER_REQUEST_CACHE_H_
#define MNEME_SERVER_REQUEST_CACHE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/metrics.h"

namespace mneme {

// Thread-safe. Bounded: beyond `entries_max` the oldest results are forgotten.
class RequestCache {
 public:
  static constexpr absl::Duration kKeep = absl::Minutes(10);
  static constexpr size_t kRequestIdBytesMax = 64;

  RequestCache(int entries_max, Clock& clock, Metrics& metrics);

  // Runs `work` unless the same method, request_id and request succeeded within kKeep: then returns
  // that result. An empty request_id runs always; errors are not remembered. `request` is the
  // serialized request; results are serialized too. INVALID_ARGUMENT: the id is too long or was
  // used with another request; ABORTED: the first one is still running.
  absl::StatusOr<std::string> Run(absl::string_view method, absl::string_view request_id,
                                  absl::string_view request,
                                  const std::function<absl::StatusOr<std::string>()>& work);

 private:
  struct Entry {
    uint64_t request_hash = 0;
    bool done = false;
    std::string result;
  };
  struct Age {
    absl::Time time;
    std::string key;
  };

  void Forget(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const size_t entries_max_;
  Clock& clock_;
  Gauge& entries_gauge_;
  absl::Mutex mutex_;
  absl::flat_hash_map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  std::deque<Age> by_age_ ABSL_GUARDED_BY(mutex_);  // finished entries, oldest first
};

}  // namespace mneme

#endif  // MNEME_SERVER_REQUEST_CACHE_H_
