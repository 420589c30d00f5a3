// Bundles with random weights, of any shape.

#ifndef MNEME_TESTS_MODEL_RANDOM_BUNDLE_H_
#define MNEME_TESTS_MODEL_RANDOM_BUNDLE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "model/bundle.h"

namespace mneme {

// What differs between the networks of a test; the rest of the config follows.
struct RandomShape {
  int d_model = 96;
  int n_lower_layers = 2;
  int n_upper_layers = 2;
  int ssm_head_dim = 64;
  int ssm_state_size = 16;
  int conv_kernel = 4;
  int n_heads = 3;
  int chunk_size = 16;
  int chunks_per_read = 3;
  int landmark_dim = 40;
  int encoder_layers = 1;
  int encoder_ffn = 72;
  int encoder_halo = 0;
  int hsa_every = 1;
  int segment_size = 64;
  int look_heads = 0;     // 0: the config has no such field
  int newest_margin = 0;  // the same
  int told_penalty = 0;   // the same; above 0 with "<0x0A>" as line_end_token
};

// Writes the bundle's files into `folder`, which is made.
void WriteRandomBundle(const RandomShape& shape, absl::string_view matrix_dtype, uint32_t seed,
                       const std::string& folder);

// Loaded from files that are gone afterwards. Matrices as `matrix_dtype` (I8, F32 or BF16). The
// same for the same seed.
std::unique_ptr<Bundle> RandomBundle(const RandomShape& shape, absl::string_view matrix_dtype,
                                     uint32_t seed);

}  // namespace mneme

#endif  // MNEME_TESTS_MODEL_RANDOM_BUNDLE_H_
