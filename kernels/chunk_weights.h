// Weights with which a row reads its selected chunks, made of their scores: by stick-breaking
// (arXiv 2504.16795), or by a softmax with a null option in which newer chunks have a margin.
//
// Stick-breaking:    w_i = sigmoid(s_i) prod_{j<i} (1 - sigmoid(s_j))
// The newest margin: w_i = exp(u_i) / (1 + sum_j exp(u_j))
//                    u_i = s_i - sum_{j<i} softplus(s_j - s_i + m)
//
// with s_1 .. s_k most recent first. Both prefer the newer of equal scores. With stick-breaking any
// newer chunk of a score above zero takes the stick, however much better an older one is; with a
// margin m an older chunk wins where its score is better by about m.

#ifndef MNEME_KERNELS_CHUNK_WEIGHTS_H_
#define MNEME_KERNELS_CHUNK_WEIGHTS_H_

#include "absl/types/span.h"

namespace mneme {

// Of one row: scores of the selected chunks, MOST RECENT FIRST -> weights, as many; they sum to at
// most 1. `newest_margin` is m, 0: stick-breaking. A score of minus infinity takes part in nothing
// and weighs 0; the others are finite.
void ChunkWeights(absl::Span<const float> scores, int newest_margin, absl::Span<float> weights);

}  // namespace mneme

#endif  // MNEME_KERNELS_CHUNK_WEIGHTS_H_
