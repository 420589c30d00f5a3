// The sizes of the networks whose operations cuda_ops_bench measures.

#ifndef MNEME_BENCH_CUDA_OPS_NETWORK_SHAPE_H_
#define MNEME_BENCH_CUDA_OPS_NETWORK_SHAPE_H_

#include <cstdint>

namespace mneme::bench {

// Sizes as in docs/model.md.
struct NetworkShape {
  int64_t d_model = 0, heads = 0, head_dim = 0, state = 0, taps = 0, attention_heads = 0, ffn = 0;
  int64_t chunk = 0, landmark = 0, vocab = 0;
  int64_t lower_layers = 0, encoder_layers = 0, halo = 0;
  int64_t inner() const { return heads * head_dim; }
  int64_t conv_dim() const { return inner() + 2 * state; }
  int64_t in_proj() const { return 2 * inner() + 2 * state + heads; }
  int64_t encoder_rows() const { return chunk + halo + 1; }  // of a chunk
  int64_t attention_dim() const { return d_model / attention_heads; }
  // Of a sequence: the newest rows for the convolution, then [heads, state, head_dim].
  int64_t conv_floats() const { return (taps - 1) * conv_dim(); }
  int64_t state_floats() const { return inner() * state; }
  // Multiplications and additions of Ssd on a row, in blocks of 64: C B, M x and the two products
  // with the state.
  double ssd_ops() const {
    const auto N = static_cast<double>(state), P = static_cast<double>(head_dim);
    return static_cast<double>(heads) * (64 * N + 64 * P + 4 * N * P);
  }
};

inline constexpr NetworkShape kSmall = {.d_model = 384,
                                        .heads = 12,
                                        .head_dim = 64,
                                        .state = 64,
                                        .taps = 4,
                                        .attention_heads = 6,
                                        .ffn = 1024,
                                        .chunk = 64,
                                        .landmark = 256,
                                        .vocab = 8192,
                                        .lower_layers = 6,
                                        .encoder_layers = 2};
inline constexpr NetworkShape k370m = {.d_model = 1024,
                                       .heads = 32,
                                       .head_dim = 64,
                                       .state = 128,
                                       .taps = 4,
                                       .attention_heads = 16,
                                       .ffn = 2816,
                                       .chunk = 64,
                                       .landmark = 1024,
                                       .vocab = 32000,
                                       .lower_layers = 24,
                                       .encoder_layers = 2};
// For the recurrence alone.
inline constexpr NetworkShape kMamba130m = {
    .d_model = 768, .heads = 24, .head_dim = 64, .state = 128, .taps = 4};

}  // namespace mneme::bench

#endif  // MNEME_BENCH_CUDA_OPS_NETWORK_SHAPE_H_
