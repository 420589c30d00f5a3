// The slowest of the requests that ended lately, for operators who ask what is slow now. Bounded:
// so many of the present window of time, and so many of the one before.

#ifndef MNEME_SERVER_SLOW_REQUESTS_H_
#define MNEME_SERVER_SLOW_REQUESTS_H_

#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace mneme {

// Thread-safe.
class SlowRequests {
 public:
  static constexpr size_t kKept = 100;  // of each window
  static constexpr absl::Duration kWindow = absl::Minutes(5);

  struct Request {
    absl::string_view method;  // lives for the whole process
    std::string resource;
    absl::string_view code;  // as method
    absl::Time end;
    absl::Duration took;
  };

  void Add(Request request);
  // Slowest first, at most `limit`, of those that ended at most two windows before `now`.
  std::vector<Request> List(size_t limit, absl::Time now) const;

 private:
  mutable absl::Mutex mutex_;
  absl::Time window_begin_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  // Slowest first.
  std::vector<Request> present_ ABSL_GUARDED_BY(mutex_);
  std::vector<Request> before_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_SERVER_SLOW_REQUESTS_H_
