#include "client/retry.h"

#include <algorithm>
#include <cmath>

#include "absl/time/clock.h"
#include "client/rpc_error.h"

namespace mneme {

absl::Duration RetryWait(const RetryPolicy& policy, int failures, std::minstd_rand& random) {
  const absl::Duration backoff =
      std::min(policy.backoff_max,
               policy.backoff_initial * std::pow(policy.multiplier, std::min(failures - 1, 64)));
  return backoff *
         std::uniform_real_distribution<double>(1 - policy.jitter, 1 + policy.jitter)(random);
}

Retrier::Retrier(const RetryPolicy& policy, absl::Time deadline, uint64_t seed,
                 const Cancellation* cancellation)
    : policy_(policy),
      deadline_(deadline),
      cancellation_(cancellation),
      random_(static_cast<uint32_t>(seed)) {}

bool Retrier::WaitForNext(const absl::Status& error) {
  const absl::Time now = absl::Now();
  first_failure_ = std::min(first_failure_, now);
  if (++failures_ >= policy_.attempts_max) return false;
  absl::Duration wait = RetryWait(policy_, failures_, random_);
  if (auto asked = RetryDelayOf(error)) wait = std::max(wait, *asked);
  if (now + wait >= deadline_ || now + wait - first_failure_ > policy_.give_up_after) return false;
  if (cancellation_ != nullptr) return !cancellation_->WaitFor(wait);
  absl::SleepFor(wait);
  return true;
}

void Retrier::NoteProgress() {
  failures_ = 0;
  first_failure_ = absl::InfiniteFuture();
}

}  // namespace mneme
