// RetryPolicy and Retrier: when to try again, and how long to wait before it: exponential backoff
// with jitter, the server's RetryInfo as a lower bound, and limits on attempts and on time.

#ifndef MNEME_CLIENT_RETRY_H_
#define MNEME_CLIENT_RETRY_H_

#include <random>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/cancellation.h"

namespace mneme {

struct RetryPolicy {
  // Wait before the second attempt; each later one waits `multiplier` times longer, up to
  // `backoff_max`.
  absl::Duration backoff_initial = absl::Milliseconds(100);
  double multiplier = 2;
  absl::Duration backoff_max = absl::Seconds(5);
  // Each wait is drawn evenly from [1 - jitter, 1 + jitter] times the backoff, so that many clients
  // do not return at once.
  double jitter = 0.25;
  // Attempts at most, the first included. 1: never try again.
  int attempts_max = 5;
  // Time from the first failure (or from the last progress) after which no attempt begins.
  absl::Duration give_up_after = absl::Seconds(60);
};

// How long to wait after so many failures in a row, 1 or more.
absl::Duration RetryWait(const RetryPolicy& policy, int failures, std::minstd_rand& random);

// The attempts of one call. Thread-compatible.
class Retrier {
 public:
  // `cancellation` may be null and must outlive the Retrier. `seed` decides the jitter.
  Retrier(const RetryPolicy& policy, absl::Time deadline, uint64_t seed,
          const Cancellation* cancellation);

  // Called after a failed attempt: waits and returns true, or returns false when no attempt is
  // left, the wait would pass the deadline, or the call was cancelled.
  bool WaitForNext(const absl::Status& error);
  // The call got somewhere: attempts and backoff count anew.
  void NoteProgress();

 private:
  const RetryPolicy policy_;
  const absl::Time deadline_;
  const Cancellation* const cancellation_;
  std::minstd_rand random_;
  int failures_ = 0;
  absl::Time first_failure_ = absl::InfiniteFuture();
};

}  // namespace mneme

#endif  // MNEME_CLIENT_RETRY_H_
