// Sampler: logits -> the next token. Greedy at temperature 0; else a draw from the softmax at that
// temperature, cut to the nucleus of mass top_p (Holtzman et al., arXiv 1904.09751). Draws repeat
// with the same seed, on every machine.

#ifndef MNEME_MODEL_SAMPLER_H_
#define MNEME_MODEL_SAMPLER_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "model/tokenizer.h"

namespace mneme {

struct SamplerOptions {
  double temperature = 0;  // >= 0
  double top_p = 1;        // 0 < top_p <= 1
  uint64_t seed = 0;
};

// Thread-compatible. Allocates on the first draw only.
class Sampler {
 public:
  explicit Sampler(const SamplerOptions& options) : options_(options), random_(options.seed) {}

  // `logits` of one row, not empty. Of equal logits the smaller id counts as the likelier.
  TokenId Next(absl::Span<const float> logits);

 private:
  // Uniform in [0, 1).
  double Uniform();

  const SamplerOptions options_;
  uint64_t random_;
  std::vector<std::pair<double, TokenId>> candidates_;  // scratch: probability (not normed), id
};

}  // namespace mneme

#endif  // MNEME_MODEL_SAMPLER_H_
