#include "engine/watermark.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mneme {
namespace {

double Share(double part, double whole) {
  // Marks that are one: a step.
  if (whole > 0) return part / whole;
  return part >= 0 ? std::numeric_limits<double>::max() : std::numeric_limits<double>::lowest();
}

}  // namespace

bool Watermark::Observe(const ResourceUse& use) {
  use_ = use;
  pressure_ = std::numeric_limits<double>::lowest();
  if (use.limit_bytes > 0) {
    const double used = static_cast<double>(use.used_bytes) / static_cast<double>(use.limit_bytes);
    pressure_ = Share(used - options_.low, options_.high - options_.low);
  }
  if (use.free_bytes >= 0 && options_.free_low_bytes > 0) {
    pressure_ = std::max(
        pressure_, Share(static_cast<double>(options_.free_low_bytes - use.free_bytes),
                         static_cast<double>(options_.free_low_bytes - options_.free_high_bytes)));
  }
  const State before = state_;
  const double slow_from = state_ == State::kNormal ? 0 : -kMargin;
  const double refuse_from = state_ == State::kRefuse ? 1 - kMargin : 1;
  state_ = pressure_ >= refuse_from ? State::kRefuse
           : pressure_ > slow_from  ? State::kSlow
                                    : State::kNormal;
  return state_ != before;
}

int64_t Watermark::free_needed_bytes() const {
  if (state_ != State::kRefuse || use_.free_bytes < 0 || options_.free_low_bytes <= 0) return -1;
  const auto between = static_cast<double>(options_.free_low_bytes - options_.free_high_bytes);
  const int64_t needed =
      options_.free_low_bytes - static_cast<int64_t>(std::floor((1 - kMargin) * between));
  return use_.free_bytes <= needed ? needed : -1;
}

int64_t Watermark::used_allowed_bytes() const {
  if (state_ != State::kRefuse || use_.limit_bytes <= 0) return -1;
  const double share = options_.low + (1 - kMargin) * (options_.high - options_.low);
  return static_cast<int64_t>(std::ceil(share * static_cast<double>(use_.limit_bytes)));
}

const char* WatermarkStateName(Watermark::State state) {
  switch (state) {
    case Watermark::State::kNormal:
      return "normal";
    case Watermark::State::kSlow:
      return "slow";
    case Watermark::State::kRefuse:
      return "refuse";
  }
  return "unknown";
}

}  // namespace mneme
