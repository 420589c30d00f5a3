// Bodies of the leaf loops (vector_kernels.h), compiled once per instruction set: the including
// file defines MNEME_VECTOR_KERNELS, the name of the function that returns its table.
//
// The order of every sum is fixed by the shape alone, so a row's result depends neither on the rows
// beside it nor on the number of threads.

#ifndef MNEME_KERNELS_CPU_VECTOR_KERNELS_IMPL_H_
#define MNEME_KERNELS_CPU_VECTOR_KERNELS_IMPL_H_

#include "kernels/cpu/simd.h"
#include "kernels/cpu/vector_kernels.h"

namespace mneme {
namespace {

// Tokens of one SSD block.
constexpr int64_t kSsdBlock = 64;

MNEME_INLINE float* Floats(void* p, int64_t offset) { return static_cast<float*>(p) + offset; }

// ---- norms -----------------------------------------------------------------------------------

// out[i] = v[i] * scale * weight[i] with v loaded by `get(i, n)`; n is 16 but for the tail.
template <typename Out, typename Get>
MNEME_INLINE void NormRow(Get get, const float* weight, float eps, int64_t width,
                          typename Out::Element* out) {
  F32x16 squares[2] = {};
  const int64_t whole = width / kLanes * kLanes;
  int64_t i = 0;
  for (; i + 2 * kLanes <= whole; i += 2 * kLanes) {
    const F32x16 a = get(i, kLanes), b = get(i + kLanes, kLanes);
    squares[0] += a * a;
    squares[1] += b * b;
  }
  for (; i < whole; i += kLanes) {
    const F32x16 a = get(i, kLanes);
    squares[0] += a * a;
  }
  if (i < width) {
    const F32x16 a = get(i, width - i);
    squares[1] += a * a;
  }
  const float mean = Sum(squares[0] + squares[1]) / static_cast<float>(width);
  const float scale = 1.0f / __builtin_sqrtf(mean + eps);
  for (i = 0; i < whole; i += kLanes) {
    Out::Put(out + i, get(i, kLanes) * scale * Load(weight + i));
  }
  if (i < width) {
    const int64_t n = width - i;
    Out::PutN(out + i, get(i, n) * scale * LoadN(weight + i, n), n);
  }
}

template <typename Out>
void RmsNormRows(const RmsNormParams& p, int64_t row_begin, int64_t row_end) {
  for (int64_t r = row_begin; r < row_end; ++r) {
    const float* in = p.in + r * p.in_stride;
    NormRow<Out>(
        [in](int64_t i, int64_t n) { return n == kLanes ? Load(in + i) : LoadN(in + i, n); },
        p.weight, p.eps, p.width, static_cast<typename Out::Element*>(p.out) + r * p.out_stride);
  }
}

void RmsNorm(const RmsNormParams& p, int64_t row_begin, int64_t row_end) {
  (p.out_dtype == DType::kBf16 ? RmsNormRows<Bf16Type> : RmsNormRows<F32Type>)(p, row_begin,
                                                                               row_end);
}

template <typename Out>
void GateNormRows(const GateNormParams& p, int64_t row_begin, int64_t row_end) {
  // The gated row is needed twice (its norm, then its scaled values): kept here, in pieces that fit
  // a cache, unless it is too wide.
  constexpr int64_t kKept = 4096;
  alignas(64) float kept[kKept];
  for (int64_t r = row_begin; r < row_end; ++r) {
    const float* y = p.y + r * p.y_stride;
    const float* z = p.z + r * p.z_stride;
    auto* out = static_cast<typename Out::Element*>(p.out) + r * p.out_stride;
    const auto gated = [y, z](int64_t i, int64_t n) {
      return n == kLanes ? Load(y + i) * Silu(Load(z + i))
                         : LoadN(y + i, n) * Silu(LoadN(z + i, n));
    };
    if (p.width > kKept) {
      NormRow<Out>(gated, p.weight, p.eps, p.width, out);
      continue;
    }
    float* k = kept;
    for (int64_t i = 0; i < p.width; i += kLanes) {
      Store(k + i, gated(i, MinI(kLanes, p.width - i)));
    }
    NormRow<Out>([k](int64_t i, int64_t n) { return n == kLanes ? Load(k + i) : LoadN(k + i, n); },
                 p.weight, p.eps, p.width, out);
  }
}

void GateNorm(const GateNormParams& p, int64_t row_begin, int64_t row_end) {
  (p.out_dtype == DType::kBf16 ? GateNormRows<Bf16Type> : GateNormRows<F32Type>)(p, row_begin,
                                                                                 row_end);
}

void HeadNorm(const HeadNormParams& p, int64_t row_begin, int64_t row_end) {
  const int64_t half = p.head_dim / 2;
  for (int64_t r = row_begin; r < row_end; ++r) {
    const float* cosine = p.cosine == nullptr ? nullptr : p.cosine + r % p.period * half;
    const float* sine = p.cosine == nullptr ? nullptr : p.sine + r % p.period * half;
    for (int64_t h = 0; h < p.heads; ++h) {
      float* x = p.data + r * p.stride + h * p.head_dim;
      NormRow<F32Type>(
          [x](int64_t i, int64_t n) { return n == kLanes ? Load(x + i) : LoadN(x + i, n); },
          p.weight, p.eps, p.head_dim, x);
      if (cosine == nullptr) continue;
      for (int64_t i = 0; i < half; i += kLanes) {
        const int64_t n = MinI(kLanes, half - i);
        const F32x16 a = LoadN(x + i, n), b = LoadN(x + half + i, n);
        const F32x16 c = LoadN(cosine + i, n), s = LoadN(sine + i, n);
        StoreN(x + i, a * c - b * s, n);
        StoreN(x + half + i, b * c + a * s, n);
      }
    }
  }
}

// ---- elementwise -----------------------------------------------------------------------------

template <typename Out>
void SwiGluRows(const SwiGluParams& p, int64_t row_begin, int64_t row_end) {
  for (int64_t r = row_begin; r < row_end; ++r) {
    const float* gate = p.gate_up + r * p.gate_up_stride;
    const float* up = gate + p.width;
    auto* out = static_cast<typename Out::Element*>(p.out) + r * p.out_stride;
    int64_t i = 0;
    for (; i + kLanes <= p.width; i += kLanes)
      Out::Put(out + i, Silu(Load(gate + i)) * Load(up + i));
    if (i < p.width) {
      const int64_t n = p.width - i;
      Out::PutN(out + i, Silu(LoadN(gate + i, n)) * LoadN(up + i, n), n);
    }
  }
}

void SwiGlu(const SwiGluParams& p, int64_t row_begin, int64_t row_end) {
  (p.out_dtype == DType::kBf16 ? SwiGluRows<Bf16Type> : SwiGluRows<F32Type>)(p, row_begin, row_end);
}

// The newest row's position relative to r: row r - back of the sequence, or of its state before the
// first row.
MNEME_INLINE const float* ConvRow(const ConvSiluParams& p, const SequenceRows& sequence,
                                  int64_t row) {
  return row >= 0 ? p.in + (sequence.row_begin + row) * p.in_stride
                  : sequence.state + p.state_offset + (p.taps - 1 + row) * p.channels;
}

// Any number of taps, channels [c, c + n).
MNEME_INLINE void ConvSiluAny(const ConvSiluParams& p, const SequenceRows& sequence, int64_t row,
                              int64_t c, int64_t n) {
  F32x16 sum = LoadN(p.bias + c, n);
  for (int64_t t = 0; t < p.taps; ++t) {
    sum += LoadN(ConvRow(p, sequence, row - (p.taps - 1 - t)) + c, n) *
           LoadN(p.weight + t * p.channels + c, n);
  }
  StoreN(p.out + (sequence.row_begin + row) * p.out_stride + c, Silu(sum), n);
}

// Four taps, kVectors whole vectors of channels from c on: the weights and the last three rows stay
// in registers.
template <int kVectors>
MNEME_INLINE void ConvSiluFour(const ConvSiluParams& p, const SequenceRows& sequence,
                               int64_t row_begin, int64_t row_end, int64_t c) {
  F32x16 weight[4][kVectors], bias[kVectors], past[3][kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = c + v * kLanes;
    bias[v] = Load(p.bias + at);
    for (int t = 0; t < 4; ++t) weight[t][v] = Load(p.weight + t * p.channels + at);
    for (int t = 0; t < 3; ++t) past[t][v] = Load(ConvRow(p, sequence, row_begin - 3 + t) + at);
  }
  const float* in = p.in + (sequence.row_begin + row_begin) * p.in_stride + c;
  float* out = p.out + (sequence.row_begin + row_begin) * p.out_stride + c;
  for (int64_t r = row_begin; r < row_end; ++r, in += p.in_stride, out += p.out_stride) {
    for (int v = 0; v < kVectors; ++v) {
      const F32x16 now = Load(in + v * kLanes);
      const F32x16 sum = bias[v] + past[0][v] * weight[0][v] + past[1][v] * weight[1][v] +
                         past[2][v] * weight[2][v] + now * weight[3][v];
      past[0][v] = past[1][v];
      past[1][v] = past[2][v];
      past[2][v] = now;
      Store(out + v * kLanes, Silu(sum));
    }
  }
}

void ConvSilu(const ConvSiluParams& p, const SequenceRows& sequence, int64_t row_begin,
              int64_t row_end) {
  int64_t c = 0;
  if (p.taps == 4) {
    for (; c + 2 * kLanes <= p.channels; c += 2 * kLanes)
      ConvSiluFour<2>(p, sequence, row_begin, row_end, c);
  }
  for (; c < p.channels; c += kLanes) {
    const int64_t n = MinI(kLanes, p.channels - c);
    for (int64_t r = row_begin; r < row_end; ++r) ConvSiluAny(p, sequence, r, c, n);
  }
}

// ---- a small matrix product --------------------------------------------------------------------

// C[m, n] (+)= sum_k A[m, k] * B[k, n]; A by row and column stride, B and C row-major, n a multiple
// of 16. Sums run over k in order.
struct SmallMatmul {
  const float* a;
  int64_t a_row, a_col;
  const float* b;
  int64_t b_row;
  float* c;
  int64_t c_row;
  int64_t m, n, k;
  bool accumulate;
};

template <int kRows, int kVectors>
MNEME_INLINE void SmallMatmulTile(const SmallMatmul& p, int64_t m, int64_t n) {
  F32x16 sum[kRows][kVectors] = {};
  const float* a = p.a + m * p.a_row;
  const float* b = p.b + n;
  for (int64_t k = 0; k < p.k; ++k, a += p.a_col, b += p.b_row) {
    F32x16 bv[kVectors];
    for (int v = 0; v < kVectors; ++v) bv[v] = Load(b + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const F32x16 av = Splat(a[r * p.a_row]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] += av * bv[v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float* c = p.c + (m + r) * p.c_row + n;
    for (int v = 0; v < kVectors; ++v) {
      Store(c + v * kLanes, p.accumulate ? Load(c + v * kLanes) + sum[r][v] : sum[r][v]);
    }
  }
}

template <int kVectors>
MNEME_INLINE void SmallMatmulColumns(const SmallMatmul& p, int64_t n) {
  int64_t m = 0;
  for (; m + 4 <= p.m; m += 4) SmallMatmulTile<4, kVectors>(p, m, n);
  for (; m < p.m; ++m) SmallMatmulTile<1, kVectors>(p, m, n);
}

void RunSmallMatmul(const SmallMatmul& p) {
  int64_t n = 0;
  for (; n + 4 * kLanes <= p.n; n += 4 * kLanes) SmallMatmulColumns<4>(p, n);
  for (; n < p.n; n += kLanes) SmallMatmulColumns<1>(p, n);
}

// ---- state space recurrence --------------------------------------------------------------------

// to[c, r] = from[r, c]; columns of `to` from rows on up to to_row are set to 0.
MNEME_INLINE void Transpose(const float* from, int64_t from_row, int64_t rows, int64_t cols,
                            float* to, int64_t to_row) {
  for (int64_t c = 0; c < cols; ++c) {
    for (int64_t r = 0; r < rows; ++r) to[c * to_row + r] = from[r * from_row + c];
    for (int64_t r = rows; r < to_row; ++r) to[c * to_row + r] = 0;
  }
}

// Scratch of Ssd in floats, in this order.
struct SsdScratch {
  int64_t width;                                 // P rounded up to whole vectors
  int64_t bt;                                    // [N, block]: B transposed
  int64_t products;                              // [block, block]: C B^T
  int64_t mixed;                                 // [block, block]: C B^T with decays and dt
  int64_t state;                                 // [N, width]: state transposed
  int64_t x;                                     // [block, width]
  int64_t y;                                     // [block, width]
  int64_t dt, log_decay, log_decay_low, factor;  // [block] each
  int64_t total;

  explicit SsdScratch(const SsdParams& p) {
    width = RoundUpI(p.head_dim, kLanes);
    bt = 0;
    products = bt + p.state_size * kSsdBlock;
    mixed = products + kSsdBlock * kSsdBlock;
    state = mixed + kSsdBlock * kSsdBlock;
    x = state + p.state_size * width;
    y = x + kSsdBlock * width;
    dt = y + kSsdBlock * width;
    log_decay = dt + kSsdBlock;
    log_decay_low = log_decay + kSsdBlock;
    factor = log_decay_low + kSsdBlock;
    total = factor + kSsdBlock;
  }
};

// dt[i] = softplus(raw + bias); log_decay[i] + log_decay_low[i] = sum of -exp(a_log) dt up to and
// with i. The sum is kept in two floats: decays between tokens are differences of sums, which may
// be large where the tokens forget fast. Rows beyond `rows` get dt 0.
MNEME_INLINE void SsdDecays(const SsdParams& p, int64_t first_row, int64_t rows, int64_t head,
                            float* dt, float* log_decay, float* log_decay_low) {
  for (int64_t i = 0; i < kSsdBlock; ++i) {
    dt[i] = i < rows ? p.dt[(first_row + i) * p.dt_stride + head] + p.dt_bias[head] : 0.0f;
  }
  for (int64_t i = 0; i < kSsdBlock; i += kLanes) Store(dt + i, Softplus(Load(dt + i)));
  const float a = -Exp(Splat(p.a_log[head]))[0];
  double sum = 0;
  for (int64_t i = 0; i < kSsdBlock; ++i) {
    if (i >= rows) dt[i] = 0;
    sum += static_cast<double>(a) * dt[i];
    log_decay[i] = static_cast<float>(sum);
    log_decay_low[i] = static_cast<float>(sum - log_decay[i]);
  }
}

#if defined(__AMX_BF16__)
#include "kernels/cpu/amx_tiles.inc"

#include "kernels/cpu/amx_ssd.inc"
#endif

// Within a block of tokens, with d_i the decay from the block's beginning up to and with token i:
//   y_i = d_i C_i S + sum_{j <= i} (d_i / d_j) (C_i B_j) dt_j x_j + D x_i
//   S'  = d_last S + sum_j (d_last / d_j) dt_j x_j B_j
// `state` is S transposed, [N, width].
void SsdHeadBlock(const SsdParams& p, int64_t first_row, int64_t rows, int64_t head,
                  const SsdScratch& s, float* state, void* scratch) {
  float* const x = Floats(scratch, s.x);
  float* const y = Floats(scratch, s.y);
  float* const dt = Floats(scratch, s.dt);
  float* const log_decay = Floats(scratch, s.log_decay);
  float* const log_decay_low = Floats(scratch, s.log_decay_low);
  float* const factor = Floats(scratch, s.factor);
  float* const mixed = Floats(scratch, s.mixed);
  const float* const products = Floats(scratch, s.products);
  const float* const xbc = p.xbc + first_row * p.xbc_stride;
  const float* const B = xbc + p.heads * p.head_dim;
  const float* const C = B + p.state_size;

  SsdDecays(p, first_row, rows, head, dt, log_decay, log_decay_low);
  for (int64_t i = 0; i < rows; ++i) {
    const float* from = xbc + i * p.xbc_stride + head * p.head_dim;
    for (int64_t c = 0; c < s.width; c += kLanes) {
      Store(x + i * s.width + c,
            c + kLanes <= p.head_dim ? Load(from + c) : LoadN(from + c, p.head_dim - c));
    }
  }

  RunSmallMatmul({.a = C,
                  .a_row = p.xbc_stride,
                  .a_col = 1,
                  .b = state,
                  .b_row = s.width,
                  .c = y,
                  .c_row = s.width,
                  .m = rows,
                  .n = s.width,
                  .k = p.state_size,
                  .accumulate = false});
  for (int64_t i = 0; i < kSsdBlock; i += kLanes) Store(factor + i, Exp(Load(log_decay + i)));
  for (int64_t i = 0; i < rows; ++i) {
    float* row = y + i * s.width;
    for (int64_t c = 0; c < s.width; c += kLanes) Store(row + c, Load(row + c) * factor[i]);
  }

  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < rows; j += kLanes) {
      float* to = mixed + i * kSsdBlock + j;
      if (j > i) {
        Store(to, F32x16{});
        continue;
      }
      const F32x16 decay =
          Exp((log_decay[i] - Load(log_decay + j)) + (log_decay_low[i] - Load(log_decay_low + j)));
      Store(to, Load(products + i * kSsdBlock + j) * decay * Load(dt + j));
      for (int64_t k = i + 1; k < j + kLanes; ++k) mixed[i * kSsdBlock + k] = 0;
    }
  }
  // In strips of 16 tokens, which see no token after the strip.
  for (int64_t i = 0; i < rows; i += kLanes) {
    RunSmallMatmul({.a = mixed + i * kSsdBlock,
                    .a_row = kSsdBlock,
                    .a_col = 1,
                    .b = x,
                    .b_row = s.width,
                    .c = y + i * s.width,
                    .c_row = s.width,
                    .m = MinI(kLanes, rows - i),
                    .n = s.width,
                    .k = MinI(i + kLanes, rows),
                    .accumulate = true});
  }
  for (int64_t i = 0; i < rows; ++i) {
    float* out = p.y + (first_row + i) * p.y_stride + head * p.head_dim;
    for (int64_t c = 0; c < p.head_dim; c += kLanes) {
      const F32x16 sum = Load(y + i * s.width + c) + Load(x + i * s.width + c) * p.d_skip[head];
      StoreN(out + c, sum, MinI(kLanes, p.head_dim - c));
    }
  }

  const float last = log_decay[rows - 1], last_low = log_decay_low[rows - 1];
  for (int64_t j = 0; j < kSsdBlock; j += kLanes) {
    const F32x16 decay = Exp((last - Load(log_decay + j)) + (last_low - Load(log_decay_low + j)));
    Store(factor + j, decay * Load(dt + j));
  }
  for (int64_t j = 0; j < rows; ++j) {
    float* row = x + j * s.width;
    for (int64_t c = 0; c < s.width; c += kLanes) Store(row + c, Load(row + c) * factor[j]);
  }
  const float whole = Exp(Splat(last))[0];
  for (int64_t i = 0; i < p.state_size * s.width; i += kLanes) {
    Store(state + i, Load(state + i) * whole);
  }
  RunSmallMatmul({.a = B,
                  .a_row = 1,
                  .a_col = p.xbc_stride,
                  .b = x,
                  .b_row = s.width,
                  .c = state,
                  .c_row = s.width,
                  .m = p.state_size,
                  .n = s.width,
                  .k = rows,
                  .accumulate = true});
}

// Rows of the state between its own width and a padded one.
MNEME_INLINE void CopyRows(const float* from, int64_t from_stride, int64_t rows, int64_t width,
                           float* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r)
    memcpy(to + r * to_stride, from + r * from_stride, width * sizeof(float));
}

void SsdInF32(const SsdParams& p, const SequenceRows& sequence, int64_t head_begin,
              int64_t head_end, void* scratch) {
  const SsdScratch s(p);
  float* const bt = Floats(scratch, s.bt);
  const bool padded = s.width != p.head_dim;
  if (padded) {
    for (int64_t i = 0; i < p.state_size * s.width; i += kLanes)
      Store(Floats(scratch, s.state) + i, F32x16{});
  }
  // Blocks outside, heads inside, so that C B^T of a block serves all heads.
  for (int64_t r = 0; r < sequence.row_count; r += kSsdBlock) {
    const int64_t rows = MinI(kSsdBlock, sequence.row_count - r);
    const int64_t first_row = sequence.row_begin + r;
    const float* B = p.xbc + first_row * p.xbc_stride + p.heads * p.head_dim;
    Transpose(B, p.xbc_stride, rows, p.state_size, bt, kSsdBlock);
    RunSmallMatmul({.a = B + p.state_size,
                    .a_row = p.xbc_stride,
                    .a_col = 1,
                    .b = bt,
                    .b_row = kSsdBlock,
                    .c = Floats(scratch, s.products),
                    .c_row = kSsdBlock,
                    .m = rows,
                    .n = RoundUpI(rows, kLanes),
                    .k = p.state_size,
                    .accumulate = false});
    for (int64_t h = head_begin; h < head_end; ++h) {
      float* stored = sequence.state + p.state_offset + h * p.head_dim * p.state_size;
      float* state = padded ? Floats(scratch, s.state) : stored;
      if (padded) CopyRows(stored, p.head_dim, p.state_size, p.head_dim, state, s.width);
      SsdHeadBlock(p, first_row, rows, h, s, state, scratch);
      if (padded) CopyRows(state, s.width, p.state_size, p.head_dim, stored, p.head_dim);
    }
  }
}

void Ssd(const SsdParams& p, const SequenceRows& sequence, int64_t head_begin, int64_t head_end,
         void* scratch) {
#if defined(__AMX_BF16__)
  if (AmxSsdFits(p)) return AmxSsd(p, sequence, head_begin, head_end, scratch);
#endif
  SsdInF32(p, sequence, head_begin, head_end, scratch);
}

int64_t SsdScratchBytes(const SsdParams& p) {
#if defined(__AMX_BF16__)
  if (AmxSsdFits(p)) return AmxSsdScratch(p).total;
#endif
  return SsdScratch(p).total * static_cast<int64_t>(sizeof(float));
}

void SsmStep(const SsdParams& p, const SequenceRows& sequence, int64_t head_begin,
             int64_t head_end) {
  const float* xbc = p.xbc + sequence.row_begin * p.xbc_stride;
  const float* B = xbc + p.heads * p.head_dim;
  const float* C = B + p.state_size;
  for (int64_t h = head_begin; h < head_end; ++h) {
    const float raw = p.dt[sequence.row_begin * p.dt_stride + h] + p.dt_bias[h];
    const float dt = Softplus(Splat(raw))[0];
    const float decay = Exp(-Exp(Splat(p.a_log[h])) * dt)[0];
    float* state = sequence.state + p.state_offset + h * p.head_dim * p.state_size;
    const float* x = xbc + h * p.head_dim;
    float* y = p.y + sequence.row_begin * p.y_stride + h * p.head_dim;
    for (int64_t i = 0; i < p.head_dim; i += kLanes) {
      const int64_t count = MinI(kLanes, p.head_dim - i);
      const F32x16 xi = LoadN(x + i, count), dx = dt * xi;
      F32x16 sums[2] = {};
      for (int64_t n = 0; n < p.state_size; ++n) {
        float* cell = state + n * p.head_dim + i;
        const F32x16 v = LoadN(cell, count) * decay + dx * B[n];
        StoreN(cell, v, count);
        sums[n & 1] += v * C[n];
      }
      StoreN(y + i, sums[0] + sums[1] + p.d_skip[h] * xi, count);
    }
  }
}

// ---- chunk encoder -----------------------------------------------------------------------------

void ChunkInput(const ChunkInputParams& p, int64_t chunk_begin, int64_t chunk_end) {
  for (int64_t c = chunk_begin; c < chunk_end; ++c) {
    float* out = p.out + c * (p.chunk_tokens + 1) * p.out_stride;
    RmsNormParams norm;
    norm.in = p.hidden + c * p.chunk_tokens * p.hidden_stride;
    norm.in_stride = p.hidden_stride;
    norm.weight = p.weight;
    norm.eps = p.eps;
    norm.width = p.width;
    norm.out = out;
    norm.out_stride = p.out_stride;
    RmsNormRows<F32Type>(norm, 0, p.chunk_tokens);
    memcpy(out + p.chunk_tokens * p.out_stride, p.cls, p.width * sizeof(float));
  }
}

// Softmax of row[0 .. n) in place; row is padded to whole vectors, the padding becomes 0.
MNEME_INLINE void SoftmaxRow(float* row, int64_t n, float scale) {
  F32x16 top = Splat(-__builtin_inff());
  const int64_t padded = RoundUpI(n, kLanes);
  for (int64_t i = n; i < padded; ++i) row[i] = -__builtin_inff();
  for (int64_t i = 0; i < padded; i += kLanes) top = Max(Load(row + i), top);
  const float highest = MaxLane(top);
  F32x16 sum = {};
  for (int64_t i = 0; i < padded; i += kLanes) {
    const F32x16 e = Exp((Load(row + i) - highest) * scale);
    Store(row + i, e);
    sum += e;
  }
  const float inverse = 1.0f / Sum(sum);
  for (int64_t i = 0; i < padded; i += kLanes) Store(row + i, Load(row + i) * inverse);
}

struct AttentionScratch {
  int64_t rows;   // group rows rounded up to whole vectors
  int64_t width;  // head width rounded up to whole vectors
  int64_t kt;     // [head_dim, rows]
  int64_t v;      // [rows, width]
  int64_t p;      // [rows, rows]
  int64_t out;    // [rows, width]
  int64_t total;

  explicit AttentionScratch(const ChunkAttentionParams& params) {
    rows = RoundUpI(params.group_rows, kLanes);
    width = RoundUpI(params.head_dim, kLanes);
    kt = 0;
    v = kt + params.head_dim * rows;
    p = v + rows * width;
    out = p + rows * rows;
    total = out + rows * width;
  }
};

int64_t ChunkAttentionScratchBytes(const ChunkAttentionParams& p) {
  return AttentionScratch(p).total * static_cast<int64_t>(sizeof(float));
}

template <typename Out>
void ChunkAttentionHead(const ChunkAttentionParams& p, int64_t group, int64_t head, void* scratch) {
  const AttentionScratch s(p);
  float* const kt = Floats(scratch, s.kt);
  float* const v = Floats(scratch, s.v);
  float* const weights = Floats(scratch, s.p);
  float* const out = Floats(scratch, s.out);
  const int64_t rows = p.group_rows, width = p.heads * p.head_dim;
  const float* q = p.qkv + group * rows * p.qkv_stride + head * p.head_dim;
  Transpose(q + width, p.qkv_stride, rows, p.head_dim, kt, s.rows);
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = q + 2 * width + r * p.qkv_stride;
    for (int64_t c = 0; c < s.width; c += kLanes) {
      Store(v + r * s.width + c, LoadN(from + c, MinI(kLanes, p.head_dim - c)));
    }
  }
  RunSmallMatmul({.a = q,
                  .a_row = p.qkv_stride,
                  .a_col = 1,
                  .b = kt,
                  .b_row = s.rows,
                  .c = weights,
                  .c_row = s.rows,
                  .m = rows,
                  .n = s.rows,
                  .k = p.head_dim,
                  .accumulate = false});
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(p.head_dim));
  for (int64_t r = 0; r < rows; ++r) SoftmaxRow(weights + r * s.rows, rows, scale);
  RunSmallMatmul({.a = weights,
                  .a_row = s.rows,
                  .a_col = 1,
                  .b = v,
                  .b_row = s.width,
                  .c = out,
                  .c_row = s.width,
                  .m = rows,
                  .n = s.width,
                  .k = rows,
                  .accumulate = false});
  for (int64_t r = 0; r < rows; ++r) {
    auto* to = static_cast<typename Out::Element*>(p.out) + (group * rows + r) * p.out_stride +
               head * p.head_dim;
    for (int64_t c = 0; c < p.head_dim; c += kLanes) {
      Out::PutN(to + c, Load(out + r * s.width + c), MinI(kLanes, p.head_dim - c));
    }
  }
}

void ChunkAttention(const ChunkAttentionParams& p, int64_t group, int64_t head, void* scratch) {
  (p.out_dtype == DType::kBf16 ? ChunkAttentionHead<Bf16Type>
                               : ChunkAttentionHead<F32Type>)(p, group, head, scratch);
}

template <typename Out>
void WritePagesOf(const WritePagesParams& p, int64_t chunk_begin, int64_t chunk_end) {
  typedef typename Out::Element Element;
  const int64_t plane = p.chunk_tokens * p.head_dim;
  for (int64_t c = chunk_begin; c < chunk_end; ++c) {
    Element* page = static_cast<Element*>(p.pages) + c * 2 * plane;
    for (int64_t t = 0; t < p.chunk_tokens; ++t) {
      const float* k = p.k + (c * (p.chunk_tokens + 1) + t) * p.stride;
      const float* v = p.v + (c * (p.chunk_tokens + 1) + t) * p.stride;
      NormRow<Out>(
          [k](int64_t i, int64_t n) { return n == kLanes ? Load(k + i) : LoadN(k + i, n); },
          p.k_norm_weight, p.eps, p.head_dim, page + t * p.head_dim);
      for (int64_t i = 0; i < p.head_dim; i += kLanes) {
        const int64_t n = MinI(kLanes, p.head_dim - i);
        Out::PutN(page + plane + t * p.head_dim + i, LoadN(v + i, n), n);
      }
    }
  }
}

void WritePages(const WritePagesParams& p, int64_t chunk_begin, int64_t chunk_end) {
  (p.page_dtype == DType::kBf16 ? WritePagesOf<Bf16Type> : WritePagesOf<F32Type>)(p, chunk_begin,
                                                                                  chunk_end);
}

// ---- hierarchical sparse attention -------------------------------------------------------------

struct HsaScratch {
  int64_t tokens;  // S rounded up to whole vectors
  int64_t width;   // D rounded up to whole vectors
  int64_t q;       // [heads, width]
  int64_t p;       // [heads, tokens]
  int64_t out;     // [heads, width]
  int64_t total;

  explicit HsaScratch(const HsaAttendParams& params) {
    tokens = RoundUpI(params.chunk_tokens, kLanes);
    width = RoundUpI(params.head_dim, kLanes);
    q = 0;
    p = q + params.heads * width;
    out = p + params.heads * tokens;
    total = out + params.heads * width;
  }
};

// scores[s] = q . k[s] for 16 tokens at once.
template <typename Page>
MNEME_INLINE void HsaScores(const float* q, const typename Page::Element* k, int64_t tokens,
                            int64_t head_dim, float* scores) {
  for (int64_t s = 0; s < tokens; s += kLanes) {
    F32x16 sums[kLanes] = {};
    const int64_t count = MinI(kLanes, tokens - s);
    for (int64_t t = 0; t < count; ++t) {
      const typename Page::Element* row = k + (s + t) * head_dim;
      int64_t d = 0;
      for (; d + kLanes <= head_dim; d += kLanes) sums[t] += Load(q + d) * Page::Get(row + d);
      if (d < head_dim) sums[t] += Load(q + d) * Page::GetN(row + d, head_dim - d);
    }
    Store(scores + s, SumEach(sums));
  }
}

// out[d] += sum_s p[s] v[s, d].
template <typename Page>
MNEME_INLINE void HsaMix(const float* p, const typename Page::Element* v, int64_t tokens,
                         int64_t head_dim, float* out) {
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    const int64_t n = MinI(kLanes, head_dim - d);
    F32x16 sum = Load(out + d);
    for (int64_t s = 0; s < tokens; ++s) {
      const typename Page::Element* row = v + s * head_dim + d;
      sum += p[s] * (n == kLanes ? Page::Get(row) : Page::GetN(row, n));
    }
    Store(out + d, sum);
  }
}

// Writes the mixed heads [heads, width] of one row.
MNEME_INLINE void HsaStoreRow(const HsaAttendParams& p, int64_t row, const float* mixed,
                              int64_t width) {
  for (int64_t h = 0; h < p.heads; ++h) {
    for (int64_t c = 0; c < p.head_dim; c += kLanes) {
      const int64_t n = MinI(kLanes, p.head_dim - c);
      const int64_t to = row * p.out_stride + h * p.head_dim + c;
      const F32x16 value = Load(mixed + h * width + c);
      if (p.out_dtype == DType::kBf16) {
        StoreBf16N(static_cast<Bf16*>(p.out) + to, value, n);
      } else {
        StoreN(static_cast<float*>(p.out) + to, value, n);
      }
    }
  }
}

template <typename Page>
void HsaRow(const HsaAttendParams& p, int64_t row, const HsaScratch& s, void* scratch) {
  float* const q = Floats(scratch, s.q);
  float* const probabilities = Floats(scratch, s.p);
  float* const out = Floats(scratch, s.out);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(p.head_dim));
  for (int64_t h = 0; h < p.heads; ++h) {
    const float* from = p.q + row * p.q_stride + h * p.head_dim;
    for (int64_t c = 0; c < s.width; c += kLanes) {
      Store(q + h * s.width + c, LoadN(from + c, MinI(kLanes, p.head_dim - c)));
    }
  }
  for (int64_t i = 0; i < p.heads * s.width; i += kLanes) Store(out + i, F32x16{});
  for (int64_t i = 0; i < p.page_counts[row]; ++i) {
    const auto* k = static_cast<const typename Page::Element*>(p.pages[row * p.pages_max + i]);
    const auto* v = k + p.chunk_tokens * p.head_dim;
    const float weight = p.weights[row * p.pages_max + i];
    for (int64_t h = 0; h < p.heads; ++h) {
      float* scores = probabilities + h * s.tokens;
      HsaScores<Page>(q + h * s.width, k, p.chunk_tokens, p.head_dim, scores);
      SoftmaxRow(scores, p.chunk_tokens, scale);
      for (int64_t t = 0; t < s.tokens; t += kLanes) Store(scores + t, Load(scores + t) * weight);
      HsaMix<Page>(scores, v, p.chunk_tokens, p.head_dim, out + h * s.width);
    }
  }
  HsaStoreRow(p, row, out, s.width);
}

#if defined(__AMX_BF16__)
#include "kernels/cpu/amx_hsa.inc"
#endif

int64_t HsaScratchBytes(const HsaAttendParams& p) {
#if defined(__AMX_BF16__)
  if (AmxHsaFits(p)) return AmxHsaScratch(p).total;
#endif
  return HsaScratch(p).total * static_cast<int64_t>(sizeof(float));
}

void HsaAttend(const HsaAttendParams& p, int64_t row_begin, int64_t row_end, void* scratch) {
#if defined(__AMX_BF16__)
  if (AmxHsaFits(p)) return AmxHsaAttend(p, row_begin, row_end, scratch);
#endif
  const HsaScratch s(p);
  for (int64_t r = row_begin; r < row_end; ++r) {
    (p.page_dtype == DType::kBf16 ? HsaRow<Bf16Type> : HsaRow<F32Type>)(p, r, s, scratch);
  }
}

// ---- products for few rows ---------------------------------------------------------------------

// One block of 16 outputs for kRows rows: the weight is read and converted once for all of them.
template <int kRows>
MNEME_INLINE void LaneBlock(const LaneMatmulParams& p, int64_t block, int64_t row) {
  const LaneWeight& w = *p.weight;
  const float* a[kRows];
  F32x16 sum[kRows] = {};
  for (int r = 0; r < kRows; ++r) a[r] = p.a + (row + r) * p.a_stride;
  if (w.dtype == DType::kI8) {
    const int64_t groups = (w.cols + 3) / 4;
    const int8_t* data = static_cast<const int8_t*>(w.data) + block * groups * 64;
    const int64_t whole = w.cols / 4;
    for (int64_t g = 0; g < groups; ++g, data += 64) {
      I32x16 packed;
      memcpy(&packed, data, sizeof packed);
      const int64_t n = g < whole ? 4 : w.cols - 4 * whole;
      for (int64_t j = 0; j < n; ++j) {
        const F32x16 v =
            __builtin_convertvector((packed << (24 - 8 * static_cast<int>(j))) >> 24, F32x16);
        for (int r = 0; r < kRows; ++r) sum[r] += v * a[r][4 * g + j];
      }
    }
    const F32x16 scale = Load(w.scale + block * kLanes);
    for (int r = 0; r < kRows; ++r) sum[r] *= scale;
  } else if (w.dtype == DType::kBf16) {
    const Bf16* data = static_cast<const Bf16*>(w.data) + block * w.cols * kLanes;
    for (int64_t k = 0; k < w.cols; ++k) {
      const F32x16 v = LoadBf16(data + k * kLanes);
      for (int r = 0; r < kRows; ++r) sum[r] += v * a[r][k];
    }
  } else {
    const float* data = static_cast<const float*>(w.data) + block * w.cols * kLanes;
    for (int64_t k = 0; k < w.cols; ++k) {
      const F32x16 v = Load(data + k * kLanes);
      for (int r = 0; r < kRows; ++r) sum[r] += v * a[r][k];
    }
  }
  const int64_t n = MinI(kLanes, w.rows - block * kLanes);
  for (int r = 0; r < kRows; ++r) {
    float* out = p.out + (row + r) * p.out_stride + block * kLanes;
    StoreN(out, p.accumulate ? LoadN(out, n) + sum[r] : sum[r], n);
  }
}

void LaneMatmul(const LaneMatmulParams& p, int64_t block_begin, int64_t block_end) {
  for (int64_t b = block_begin; b < block_end; ++b) {
    int64_t r = 0;
    for (; r + 4 <= p.rows; r += 4) LaneBlock<4>(p, b, r);
    for (; r < p.rows; ++r) LaneBlock<1>(p, b, r);
  }
}

#if defined(__AVX512VNNI__)
// kBlocks blocks of 16 outputs from `block` on, side by side: several streams of weights keep more
// of memory's reads in flight than one. Sums are integers, so how rows and blocks are grouped
// changes nothing.
template <int kRows, int kBlocks>
MNEME_INLINE void LaneBlocksBytes(const LaneMatmulParams& p, const ByteRows& bytes, int64_t block,
                                  int64_t row) {
  constexpr int64_t kAhead = 2048;  // bytes
  const LaneWeight& w = *p.weight;
  const int64_t groups = (w.cols + 3) / 4;
  const int8_t* data[kBlocks];
  __m512i hi[kRows][kBlocks], lo[kRows][kBlocks];
  const uint8_t *a_hi[kRows], *a_lo[kRows];
  for (int b = 0; b < kBlocks; ++b) {
    data[b] = static_cast<const int8_t*>(w.data) + (block + b) * groups * 64;
    for (int r = 0; r < kRows; ++r) hi[r][b] = lo[r][b] = _mm512_setzero_si512();
  }
  for (int r = 0; r < kRows; ++r) {
    a_hi[r] = bytes.hi + (row + r) * bytes.plane_stride;
    a_lo[r] = bytes.lo + (row + r) * bytes.plane_stride;
  }
  for (int64_t g = 0; g < groups; ++g) {
    __m512i v[kBlocks];
    for (int b = 0; b < kBlocks; ++b) {
      _mm_prefetch(reinterpret_cast<const char*>(data[b]) + g * 64 + kAhead, _MM_HINT_T0);
      v[b] = _mm512_loadu_si512(data[b] + g * 64);
    }
    for (int r = 0; r < kRows; ++r) {
      int32_t h, l;
      memcpy(&h, a_hi[r] + 4 * g, 4);
      memcpy(&l, a_lo[r] + 4 * g, 4);
      for (int b = 0; b < kBlocks; ++b) {
        hi[r][b] = _mm512_dpbusd_epi32(hi[r][b], _mm512_set1_epi32(h), v[b]);
        lo[r][b] = _mm512_dpbusd_epi32(lo[r][b], _mm512_set1_epi32(l), v[b]);
      }
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    const int64_t first = (block + b) * kLanes, n = MinI(kLanes, w.rows - first);
    I32x16 row_sum;
    memcpy(&row_sum, w.row_sum + first, sizeof row_sum);
    const F32x16 scale = Load(w.scale + first);
    for (int r = 0; r < kRows; ++r) {
      const I32x16 centred = (I32x16)hi[r][b] - row_sum * 128;
      const F32x16 sum = (__builtin_convertvector(centred, F32x16) * 256.0f +
                          __builtin_convertvector((I32x16)lo[r][b], F32x16)) *
                         (scale * bytes.scale[row + r]);
      float* out = p.out + (row + r) * p.out_stride + first;
      StoreN(out, p.accumulate ? LoadN(out, n) + sum : sum, n);
    }
  }
}

template <int kBlocks>
MNEME_INLINE void LaneRowsBytes(const LaneMatmulParams& p, const ByteRows& bytes, int64_t block) {
  int64_t r = 0;
  for (; r + 4 <= p.rows; r += 4) LaneBlocksBytes<4, kBlocks>(p, bytes, block, r);
  for (; r < p.rows; ++r) LaneBlocksBytes<1, kBlocks>(p, bytes, block, r);
}

void LaneMatmulBytes(const LaneMatmulParams& p, const ByteRows& bytes, int64_t block_begin,
                     int64_t block_end) {
  int64_t b = block_begin;
  if (p.rows < 4) {
    for (; b + 4 <= block_end; b += 4) LaneRowsBytes<4>(p, bytes, b);
  }
  for (; b + 2 <= block_end; b += 2) LaneRowsBytes<2>(p, bytes, b);
  for (; b < block_end; ++b) LaneRowsBytes<1>(p, bytes, b);
}

void ToBytes(const float* a, int64_t cols, int64_t plane_stride, uint8_t* hi, uint8_t* lo,
             float* scale) {
  F32x16 top = {};
  for (int64_t i = 0; i < cols; i += kLanes) {
    const F32x16 v = LoadN(a + i, MinI(kLanes, cols - i));
    top = Max((F32x16)((I32x16)v & 0x7fffffff), top);
  }
  const float highest = MaxLane(top);
  const float inverse = highest > 0 ? 32767.0f / highest : 0.0f;
  *scale = highest / 32767.0f;
  typedef uint8_t U8x16 __attribute__((vector_size(16)));
  for (int64_t i = 0; i < plane_stride; i += kLanes) {
    const int64_t n = cols - i < 0 ? 0 : MinI(kLanes, cols - i);
    const I32x16 q = (I32x16)_mm512_cvtps_epi32((__m512)(LoadN(a + i, n) * inverse)) + 32768;
    const U8x16 h = __builtin_convertvector(q >> 8, U8x16);
    const U8x16 l = __builtin_convertvector(q & 255, U8x16);
    const int64_t bytes = MinI(kLanes, plane_stride - i);
    memcpy(hi + i, &h, bytes);
    memcpy(lo + i, &l, bytes);
  }
}
#endif

}  // namespace

const VectorKernels& MNEME_VECTOR_KERNELS() {
  static constexpr VectorKernels kTable = {
    .rms_norm = RmsNorm,
    .gate_norm = GateNorm,
    .head_norm = HeadNorm,
    .swiglu = SwiGlu,
    .conv_silu = ConvSilu,
    .ssd = Ssd,
    .ssd_scratch_bytes = SsdScratchBytes,
    .ssm_step = SsmStep,
    .chunk_input = ChunkInput,
    .chunk_attention = ChunkAttention,
    .chunk_attention_scratch_bytes = ChunkAttentionScratchBytes,
    .write_pages = WritePages,
    .hsa_attend = HsaAttend,
    .hsa_scratch_bytes = HsaScratchBytes,
    .lane_matmul = LaneMatmul,
#if defined(__AVX512VNNI__)
    .lane_matmul_bytes = LaneMatmulBytes,
    .to_bytes = ToBytes,
#else
    .lane_matmul_bytes = nullptr,
    .to_bytes = nullptr,
#endif
  };
  return kTable;
}

}  // namespace mneme

#endif  // MNEME_KERNELS_CPU_VECTOR_KERNELS_IMPL_H_
