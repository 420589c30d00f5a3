// Watermark: what to do about ingest while a resource runs out. Below the low mark nothing, between
// the marks it is slowed, the more the nearer the high mark is, above that it is refused. The way
// back has a margin, so that a use that hovers at a mark does not flap.

#ifndef MNEME_ENGINE_WATERMARK_H_
#define MNEME_ENGINE_WATERMARK_H_

#include <cstdint>
#include <string>

namespace mneme {

// How much of a resource is used: of the disk, of host memory, of device memory.
struct ResourceUse {
  std::string resource;  // "disk", "host", "device"
  // Used of what may be; limit 0: there is none.
  int64_t used_bytes = 0;
  int64_t limit_bytes = 0;
  // Free, whoever uses the rest; -1: not known, or no matter.
  int64_t free_bytes = -1;
};

struct WatermarkOptions {
  // Shares of the limit.
  double low = 0.85;
  double high = 0.95;
  // Free bytes, the low mark being the larger one; both 0: no matter.
  int64_t free_low_bytes = 0;
  int64_t free_high_bytes = 0;
};

// Not thread-safe.
class Watermark {
 public:
  enum class State { kNormal = 0, kSlow = 1, kRefuse = 2 };
  // Of the way from the low mark to the high one: so far below a mark the use must come before it
  // counts as below again.
  static constexpr double kMargin = 0.1;

  explicit Watermark(const WatermarkOptions& options) : options_(options) {}

  // What the use comes to; true when the state is another than before.
  bool Observe(const ResourceUse& use);
  State state() const { return state_; }
  // Place of the use between the marks: 0 at the low one, 1 at the high one, below 0 and above 1
  // beyond them.
  double pressure() const { return pressure_; }
  const ResourceUse& use() const { return use_; }
  // Of kRefuse: more than so much must be free before it ends; -1: what is free does not stand
  // against it.
  int64_t free_needed_bytes() const;
  // Of kRefuse: less than so much must be used before it ends; -1: what is used has no limit.
  int64_t used_allowed_bytes() const;

 private:
  const WatermarkOptions options_;
  State state_ = State::kNormal;
  double pressure_ = 0;
  ResourceUse use_;
};

// "normal", "slow", "refuse".
const char* WatermarkStateName(Watermark::State state);

}  // namespace mneme

#endif  // MNEME_ENGINE_WATERMARK_H_
