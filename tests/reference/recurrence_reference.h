// The recurrent parts of a Mamba-2 layer, one token at a time, in double precision.

#ifndef MNEME_TESTS_REFERENCE_RECURRENCE_REFERENCE_H_
#define MNEME_TESTS_REFERENCE_RECURRENCE_REFERENCE_H_

#include <cmath>
#include <vector>

#include "kernels/ops.h"
#include "tests/reference/norm_reference.h"

namespace mneme {

struct RecurrenceResult {
  std::vector<double> out;                  // [rows, width]
  std::vector<std::vector<double>> states;  // of each sequence, after its rows
};

// Causal depthwise convolution, bias, SiLU.
inline RecurrenceResult ConvSiluReference(const ConvSiluParams& p) {
  RecurrenceResult result;
  result.out.resize(p.rows * p.channels);
  const int64_t past = p.taps - 1;
  for (int64_t s = 0; s < p.sequence_count; ++s) {
    const SequenceRows& sequence = p.sequences[s];
    const float* state = sequence.state + p.state_offset;
    std::vector<double> rows(state, state + past * p.channels);  // the past, then the present
    for (int64_t r = 0; r < sequence.row_count; ++r) {
      for (int64_t c = 0; c < p.channels; ++c) {
        rows.push_back(
            ElementReference(p.in, p.io_dtype, (sequence.row_begin + r) * p.in_stride + c));
      }
      for (int64_t c = 0; c < p.channels; ++c) {
        double sum = p.bias[c];
        for (int64_t t = 0; t < p.taps; ++t) {
          sum += double{p.weight[t * p.channels + c]} * rows[(r + t) * p.channels + c];
        }
        result.out[(sequence.row_begin + r) * p.channels + c] = SiluReference(sum);
      }
    }
    result.states.emplace_back(rows.end() - past * p.channels, rows.end());
  }
  return result;
}

// state = exp(-exp(a_log) dt) state + dt x B;  y = state C + D x;  dt = softplus(raw + bias).
inline RecurrenceResult SsmReference(const SsdParams& p) {
  const int64_t H = p.heads, P = p.head_dim, N = p.state_size;
  RecurrenceResult result;
  result.out.resize(p.rows * H * P);
  for (int64_t s = 0; s < p.sequence_count; ++s) {
    const SequenceRows& sequence = p.sequences[s];
    const float* first = sequence.state + p.state_offset;
    std::vector<double> state(first, first + H * N * P);
    for (int64_t r = sequence.row_begin; r < sequence.row_begin + sequence.row_count; ++r) {
      const float* xbc = p.xbc + r * p.xbc_stride;
      for (int64_t h = 0; h < H; ++h) {
        const double raw = double{p.dt[r * p.dt_stride + h]} + p.dt_bias[h];
        const double dt = raw > 30 ? raw : std::log1p(std::exp(raw));
        const double decay = std::exp(-std::exp(double{p.a_log[h]}) * dt);
        for (int64_t i = 0; i < P; ++i) {
          const double x = xbc[h * P + i];
          double y = p.d_skip[h] * x;
          for (int64_t n = 0; n < N; ++n) {
            double& cell = state[(h * N + n) * P + i];
            cell = cell * decay + dt * x * xbc[H * P + n];
            y += cell * xbc[H * P + N + n];
          }
          result.out[r * H * P + h * P + i] = y;
        }
      }
    }
    result.states.push_back(std::move(state));
  }
  return result;
}

}  // namespace mneme

#endif  // MNEME_TESTS_REFERENCE_RECURRENCE_REFERENCE_H_
