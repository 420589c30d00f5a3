// The chunk encoder's and the reader's attention, SwiGLU and pages, in double precision.

#ifndef MNEME_TESTS_REFERENCE_ATTENTION_REFERENCE_H_
#define MNEME_TESTS_REFERENCE_ATTENTION_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/ops.h"
#include "tests/reference/chunk_weights_reference.h"
#include "tests/reference/norm_reference.h"

namespace mneme {

inline std::vector<double> SoftmaxReference(std::vector<double> scores) {
  double top = -HUGE_VAL, sum = 0;
  for (double s : scores) top = std::max(top, s);
  for (double& s : scores) sum += s = std::exp(s - top);
  for (double& s : scores) s /= sum;
  return scores;
}

// Norm of each chunk's rows and of those behind it in its sequence or zeros, then its CLS row.
inline std::vector<double> ChunkInputReference(const ChunkInputParams& p) {
  std::vector<double> out;
  for (int64_t c = 0; c < p.chunks; ++c) {
    for (int64_t t = 0; t < p.chunk_tokens + p.halo_tokens; ++t) {
      const int64_t row = c * p.chunk_tokens + t;
      if (t >= p.chunk_tokens && row >= p.sequence_ends[c]) {
        out.insert(out.end(), p.width, 0.0);
        continue;
      }
      const float* in = p.hidden + row * p.hidden_stride;
      for (double v : NormRowReference({in, in + p.width}, p.weight, p.eps)) out.push_back(v);
    }
    out.insert(out.end(), p.cls, p.cls + p.width);
  }
  return out;
}

inline std::vector<double> ChunkAttentionReference(const ChunkAttentionParams& p) {
  const int64_t T = p.group_rows, D = p.head_dim, width = p.heads * D;
  std::vector<double> out(p.groups * T * width, 0.0);
  for (int64_t g = 0; g < p.groups; ++g) {
    for (int64_t h = 0; h < p.heads; ++h) {
      std::vector<double> heads[3];  // q, k, v: [T, D]
      for (int part = 0; part < 3; ++part) {
        for (int64_t r = 0; r < T; ++r) {
          std::vector<double> x;
          for (int64_t d = 0; d < D; ++d) {
            x.push_back(ElementReference(p.qkv, p.in_dtype,
                                         (g * T + r) * p.qkv_stride + part * width + h * D + d));
          }
          if (p.q_norm != nullptr && part < 2) {
            x = NormRowReference(x, part == 0 ? p.q_norm : p.k_norm, p.eps);
            RotateReference(p.cosine + r * (D / 2), p.sine + r * (D / 2), &x);
          }
          heads[part].insert(heads[part].end(), x.begin(), x.end());
        }
      }
      const auto at = [&](int64_t row, int64_t part, int64_t d) {
        return heads[part][row * D + d];
      };
      for (int64_t r = 0; r < T; ++r) {
        std::vector<double> scores(T, 0.0);
        for (int64_t t = 0; t < T; ++t) {
          for (int64_t d = 0; d < D; ++d) scores[t] += at(r, 0, d) * at(t, 1, d);
          scores[t] /= std::sqrt(static_cast<double>(D));
        }
        scores = SoftmaxReference(scores);
        for (int64_t t = 0; t < T; ++t) {
          for (int64_t d = 0; d < D; ++d) {
            out[(g * T + r) * width + h * D + d] += scores[t] * at(t, 2, d);
          }
        }
      }
    }
  }
  return out;
}

inline std::vector<double> SwiGluReference(const SwiGluParams& p) {
  std::vector<double> out;
  for (int64_t r = 0; r < p.rows; ++r) {
    const float* row = p.gate_up + r * p.gate_up_stride;
    for (int64_t i = 0; i < p.width; ++i) out.push_back(SiluReference(row[i]) * row[p.width + i]);
  }
  return out;
}

inline std::vector<double> WritePagesReference(const WritePagesParams& p) {
  std::vector<double> out;
  for (int64_t c = 0; c < p.chunks; ++c) {
    const int64_t first = c * p.group_rows;
    for (int64_t t = 0; t < p.chunk_tokens; ++t) {
      const float* k = p.k + (first + t) * p.stride;
      for (double v : NormRowReference({k, k + p.head_dim}, p.k_norm_weight, p.eps))
        out.push_back(v);
    }
    for (int64_t t = 0; t < p.chunk_tokens; ++t) {
      const float* v = p.v + (first + t) * p.stride;
      out.insert(out.end(), v, v + p.head_dim);
    }
  }
  return out;
}

inline std::vector<double> HsaAttendReference(const HsaAttendParams& p) {
  const int64_t S = p.chunk_tokens, D = p.head_dim;
  std::vector<double> out(p.rows * p.heads * D, 0.0);
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t i = 0; i < p.page_counts[r]; ++i) {
      const void* page = p.pages[r * p.pages_max + i];
      for (int64_t h = 0; h < p.heads; ++h) {
        std::vector<double> scores(S, 0.0);
        for (int64_t s = 0; s < S; ++s) {
          for (int64_t d = 0; d < D; ++d) {
            scores[s] += double{p.q[r * p.q_stride + h * D + d]} *
                         ElementReference(page, p.page_dtype, s * D + d);
          }
          scores[s] /= std::sqrt(static_cast<double>(D));
        }
        scores = SoftmaxReference(scores);
        for (int64_t s = 0; s < S; ++s) {
          for (int64_t d = 0; d < D; ++d) {
            out[(r * p.heads + h) * D + d] +=
                p.weights[r * p.pages_max + i] * scores[s] *
                ElementReference(page, p.page_dtype, S * D + s * D + d);
          }
        }
      }
    }
  }
  return out;
}

// Corrected scores and weights, [rows, pages_max] both.
struct ChunkLookValues {
  std::vector<double> corrected, weights;
};
inline ChunkLookValues ChunkLookReference(const ChunkLookParams& p) {
  const int64_t S = p.chunk_tokens, D = p.head_dim;
  ChunkLookValues out;
  for (int64_t r = 0; r < p.rows; ++r) {
    std::vector<double> corrected(p.pages_max, -HUGE_VAL);
    for (int64_t i = 0; i < p.page_counts[r]; ++i) {
      corrected[i] = p.scores[r * p.pages_max + i];
      if (corrected[i] == -HUGE_VAL) continue;
      const void* page = p.pages[r * p.pages_max + i];
      for (int64_t h = 0; h < p.heads; ++h) {
        std::vector<double> products(S, 0.0);
        for (int64_t s = 0; s < S; ++s) {
          for (int64_t d = 0; d < D; ++d) {
            products[s] += double{p.q[r * p.q_stride + h * D + d]} *
                           ElementReference(page, p.page_dtype, s * D + d);
          }
          products[s] /= std::sqrt(static_cast<double>(D));
        }
        const double top = *std::max_element(products.begin(), products.end());
        double sum = 0;
        for (double product : products) sum += std::exp(product - top);
        corrected[i] += p.head_weight[h] * (top + std::log(sum / static_cast<double>(S)));
      }
    }
    const std::vector<double> weights = ChunkWeightsReference(corrected, p.newest_margin);
    out.corrected.insert(out.corrected.end(), corrected.begin(), corrected.end());
    out.weights.insert(out.weights.end(), weights.begin(), weights.end());
  }
  return out;
}

}  // namespace mneme

#endif  // MNEME_TESTS_REFERENCE_ATTENTION_REFERENCE_H_
