#include "model/sampler.h"

#include <algorithm>
#include <cmath>

namespace mneme {

TokenId Sampler::Next(absl::Span<const float> logits) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (options_.temperature <= 0) return static_cast<TokenId>(best - logits.begin());
  candidates_.clear();
  candidates_.reserve(logits.size());
  double total = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double mass = std::exp((static_cast<double>(logits[i]) - *best) / options_.temperature);
    total += mass;
    candidates_.emplace_back(mass, static_cast<TokenId>(i));
  }
  if (options_.top_p < 1) {
    std::sort(candidates_.begin(), candidates_.end(), [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    });
    const double wanted = options_.top_p * total;
    size_t kept = 0;
    for (total = 0; kept < candidates_.size() && total < wanted; ++kept) {
      total += candidates_[kept].first;
    }
    candidates_.resize(std::max<size_t>(kept, 1));
  }
  double left = Uniform() * total;
  for (const auto& [mass, id] : candidates_) {
    if (left < mass) return id;
    left -= mass;
  }
  return candidates_.back().second;
}

double Sampler::Uniform() {
  // SplitMix64 (Steele, Lea and Flood, 2014); 53 bits of it.
  uint64_t z = (random_ += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1.0p-53;
}

}  // namespace mneme
