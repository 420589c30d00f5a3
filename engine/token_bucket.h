// TokenBucket: how much may go through in a time, with a burst. What goes through is taken whole,
// also when less is left: the debt is waited for afterwards, so the rate holds in the long run and
// a message larger than the burst still gets through.

#ifndef MNEME_ENGINE_TOKEN_BUCKET_H_
#define MNEME_ENGINE_TOKEN_BUCKET_H_

#include <algorithm>

#include "absl/time/time.h"

namespace mneme {

// Not thread-safe. Begins full. Times must not go back; one that does counts as no time.
class TokenBucket {
 public:
  // `rate` a second, up to `burst` at once. Rate 0: no limit.
  TokenBucket(double rate, double burst) : rate_(rate), burst_(burst), level_(burst) {}

  // Changes the rate from `now` on; the debt stays.
  void SetRate(double rate, absl::Time now) {
    Refill(now);
    rate_ = rate;
  }
  // Something may be taken.
  bool Open(absl::Time now) {
    Refill(now);
    return rate_ <= 0 || level_ > 0;
  }
  void Take(double amount, absl::Time now) {
    Refill(now);
    if (rate_ > 0) level_ -= amount;
  }
  // Until it is open, if nothing is taken meanwhile.
  absl::Duration Wait(absl::Time now) {
    if (Open(now)) return absl::ZeroDuration();
    // A little more than nothing must be there.
    return absl::Seconds((1 - level_) / rate_);
  }

 private:
  void Refill(absl::Time now) {
    const absl::Duration passed = now - last_;
    last_ = std::max(last_, now);
    if (passed <= absl::ZeroDuration() || rate_ <= 0) return;
    if (passed == absl::InfiniteDuration()) {  // the first time
      level_ = burst_;
      return;
    }
    level_ = std::min(burst_, level_ + rate_ * absl::ToDoubleSeconds(passed));
  }

  double rate_;
  const double burst_;
  double level_;
  absl::Time last_ = absl::InfinitePast();
};

}  // namespace mneme

#endif  // MNEME_ENGINE_TOKEN_BUCKET_H_
