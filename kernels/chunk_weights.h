// Stick-breaking weights of a selection (arXiv 2504.16795).

#ifndef MNEME_KERNELS_CHUNK_WEIGHTS_H_
#define MNEME_KERNELS_CHUNK_WEIGHTS_H_

#include "absl/types/span.h"

namespace mneme {

// Of one row: scores of the selected chunks, MOST RECENT FIRST -> w_i = sigmoid(s_i) *
// prod_{j<i} (1 - sigmoid(s_j)); they sum to at most 1. A score of minus infinity weighs nothing.
// `weights` has the same length.
void StickBreakingWeights(absl::Span<const float> scores, absl::Span<float> weights);

}  // namespace mneme

#endif  // MNEME_KERNELS_CHUNK_WEIGHTS_H_
