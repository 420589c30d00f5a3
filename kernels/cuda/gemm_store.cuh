// What becomes of the sums of a product: scaled, then stored as f32, added to f32, rounded to bf16,
// or, gates and ups together, as silu(gate) * up in bf16. Shared by the kernels of gemm.cu and
// wgmma_gemm.cu, whose sums are fragments of 16 rows x 8 outputs (tensor_core.cuh).

#ifndef MNEME_KERNELS_CUDA_GEMM_STORE_CUH_
#define MNEME_KERNELS_CUDA_GEMM_STORE_CUH_

#include <cstdint>

#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme {

// A warp's way through shared memory: 16 rows of 64 bf16, padded so that the lanes of a fragment
// write to different banks.
inline constexpr int kStoreRowBytes = 64 * 2 + 16;
inline constexpr int kStoreBytes = 16 * kStoreRowBytes;

struct GemmStore {
  // kAddScaled: added to rows that NextNorm left (NextNorm::unscale).
  enum class Kind { kF32, kAdd, kBf16, kSwiGlu, kAddScaled };

  Kind kind;
  const float* scale;  // [n], or null: 1
  void* out;
  int64_t stride;  // of out
  int64_t rows;
  int n;
  float* tail;  // outputs from tail_begin on, as f32
  int64_t tail_stride;
  int tail_begin, tail_end;  // n: none
  const float* factor;       // [rows], or null: 1
  NextNorm next;

  static GemmStore Of(const GemmParams& p) {
    const Kind kind = p.swiglu                      ? Kind::kSwiGlu
                      : p.out_dtype == DType::kBf16 ? Kind::kBf16
                      : p.next.unscale != nullptr   ? Kind::kAddScaled
                      : p.accumulate                ? Kind::kAdd
                                                    : Kind::kF32;
    return {.kind = kind,
            .scale = p.scale,
            .out = p.out,
            .stride = p.swiglu ? p.n / 2 : p.n,
            .rows = p.rows,
            .n = static_cast<int>(p.n),
            .tail = p.tail,
            .tail_stride = p.tail_stride,
            .tail_begin = static_cast<int>(p.tail == nullptr ? p.n : p.tail_begin),
            .tail_end = static_cast<int>(p.tail == nullptr ? p.n : p.tail_begin + p.tail_outputs),
            .factor = p.factor,
            .next = p.next};
  }
  // Whether rows of `out` can be written 16 bytes (f32 that is not added: 8) at a time.
  bool aligned() const {
    const bool halves = kind == Kind::kBf16 || kind == Kind::kSwiGlu;
    const bool wide = halves || kind == Kind::kAdd || kind == Kind::kAddScaled;
    return reinterpret_cast<uintptr_t>(out) % (wide ? 16 : 8) == 0 && stride % 8 == 0;
  }
};

// The factors of this lane's two rows, of 16 from `row` on. Read before the sums are there.
__device__ __forceinline__ float2 RowFactors(const GemmStore& store, int row) {
  const int64_t row0 = row + static_cast<int>(threadIdx.x) % 32 / 4;
  float2 factors = {1.0f, 1.0f};
  if (store.factor == nullptr) return factors;
  if (row0 < store.rows) factors.x = store.factor[row0];
  if (row0 + 8 < store.rows) factors.y = store.factor[row0 + 8];
  return factors;
}

// The scales of this lane's outputs, kColumns from `column` on. Read before the sums are there.
template <int kColumns>
struct StoreScales {
  float2 values[kColumns / 8];

  __device__ __forceinline__ void Load(const GemmStore& store, int column) {
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      const int output = column + j * 8 + static_cast<int>(threadIdx.x) % 4 * 2;
      values[j] = {1.0f, 1.0f};
      if (store.scale != nullptr && output < store.n) {
        values[j] = __ldg(reinterpret_cast<const float2*>(store.scale + output));
      }
    }
  }
};

// What the output holds before, where sums are added to it: of kCount fragments from output
// `column` on, 16 rows from `row` on.
template <int kCount>
struct StoreBefore {
  float2 values[kCount][2];

  __device__ __forceinline__ void Load(const GemmStore& store, int row, int column) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int64_t row0 = row + lane / 4;
    const float* const from =
        static_cast<const float*>(store.out) + row0 * store.stride + column + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bool valid = row0 + half * 8 < store.rows && column + j * 8 < store.n;
        values[j][half] = {0, 0};
        if (valid) {
          values[j][half] =
              *reinterpret_cast<const float2*>(from + half * 8 * store.stride + j * 8);
        }
      }
    }
  }
};

// Stores `kCount` fragments from number kFirst on, as f32: kAdd to `before`.
template <bool kAdd, int kFirst, int kCount, int kFragments>
__device__ __forceinline__ void StoreF32(const float (&sums)[kFragments][4],
                                         const float2 (&scales)[kFragments], const float2& factors,
                                         const StoreBefore<kCount>& before, const GemmStore& store,
                                         int row, int column) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row0 = row + lane / 4;
  float* const to = static_cast<float*>(store.out) + row0 * store.stride + column + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int j = kFirst + i;
    if (column + j * 8 >= store.n) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float factor = half == 0 ? factors.x : factors.y;
      float2 v = {sums[j][half * 2] * scales[j].x * factor,
                  sums[j][half * 2 + 1] * scales[j].y * factor};
      if (kAdd) v = {before.values[i][half].x + v.x, before.values[i][half].y + v.y};
      if (row0 + half * 8 < store.rows) {
        *reinterpret_cast<float2*>(to + half * 8 * store.stride + j * 8) = v;
      }
    }
  }
}

// Stores a warp's fragments as bf16, or silu(gate) * up of them: 16 rows from `row` on, outputs
// from `column` on (a multiple of 16). Eight fragments of results at a time go through `shared`,
// kStoreBytes of the warp's own, to whole 128 bytes of rows.
template <bool kSwiGlu, int kFragments>
__device__ __forceinline__ void StoreBf16(const float (&sums)[kFragments][4],
                                          const float2 (&scales)[kFragments], const float2& factors,
                                          const GemmStore& store, unsigned char* shared, int row,
                                          int column) {
  constexpr int kPass = 8, kResults = kSwiGlu ? kFragments / 2 : kFragments;
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  uint32_t* const to = reinterpret_cast<uint32_t*>(shared + g * kStoreRowBytes) + t;
  const int first_output = kSwiGlu ? column / 2 : column;
  const int end = kSwiGlu ? store.n / 2 : store.n;
  const bool has_tail = !kSwiGlu && column + kFragments * 8 > store.tail_begin;
#pragma unroll
  for (int first = 0; first < kResults; first += kPass) {
#pragma unroll
    for (int i = 0; i < kPass; ++i) {
      if (first + i >= kResults) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float factor = half == 0 ? factors.x : factors.y;
        float2 v;
        if (kSwiGlu) {
          const int j = 2 * (first + i);
          v = {SiluToBf16(sums[j][half * 2] * scales[j].x * factor) *
                   (sums[j + 1][half * 2] * scales[j + 1].x * factor),
               SiluToBf16(sums[j][half * 2 + 1] * scales[j].y * factor) *
                   (sums[j + 1][half * 2 + 1] * scales[j + 1].y * factor)};
        } else {
          const int j = first + i;
          v = {sums[j][half * 2] * scales[j].x * factor,
               sums[j][half * 2 + 1] * scales[j].y * factor};
        }
        to[half * 8 * (kStoreRowBytes / 4) + i * 4] = PackBf16(v.x, v.y);
        if (has_tail) {
          const int64_t r = row + g + half * 8;
          const int at = column + (first + i) * 8 + t * 2 - store.tail_begin;
          float* const tail = store.tail + r * store.tail_stride + at;
          const int tail_count = store.tail_end - store.tail_begin;
          if (r < store.rows && at >= 0 && at < tail_count) tail[0] = v.x;
          if (r < store.rows && at + 1 >= 0 && at + 1 < tail_count) tail[1] = v.y;
        }
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = i * 4 + lane / 8, part = lane % 8;
      const int output = first_output + (first + part) * 8;
      if (first + part < kResults && output < end && row + r < store.rows) {
        *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(store.out) +
                                  (row + r) * store.stride + output) =
            *reinterpret_cast<const uint4*>(shared + r * kStoreRowBytes + part * 16);
      }
    }
    __syncwarp();
  }
}

// What the output holds before, where a warp adds its sums to it: of 16 rows from `row` on, kCount
// times 32 outputs from `column` on. A lane has four neighbours of every fourth row: whole 128
// bytes of a row at a time.
template <int kCount>
struct RowsBefore {
  float4 values[kCount][4];

  __device__ __forceinline__ void Load(const GemmStore& store, int row, int column) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int64_t row0 = row + lane / 8;
    const int first = column + lane % 8 * 4;
    const float* const from = static_cast<const float*>(store.out) + row0 * store.stride + first;
#pragma unroll
    for (int pass = 0; pass < kCount; ++pass) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        values[pass][i] = {0, 0, 0, 0};
        if (row0 + i * 4 < store.rows && first + pass * 32 < store.n) {
          values[pass][i] =
              *reinterpret_cast<const float4*>(from + i * 4 * store.stride + pass * 32);
        }
      }
    }
  }
};

// Lays four of the warp's fragments out in `shared`, from number `first` on, scaled: 16 rows of 32
// f32, which any lane may read afterwards.
template <int kFragments>
__device__ __forceinline__ void StageSums(const float (&sums)[kFragments][4],
                                          const float2 (&scales)[kFragments], const float2& factors,
                                          int first, unsigned char* shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int j = first + i;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float factor = half == 0 ? factors.x : factors.y;
      *reinterpret_cast<float2*>(shared + (g + half * 8) * kStoreRowBytes + i * 32 + t * 8) = {
          sums[j][half * 2] * scales[j].x * factor, sums[j][half * 2 + 1] * scales[j].y * factor};
    }
  }
  __syncwarp();
}

// Adds the warp's fragments from number kFirst on, kCount times 32 outputs of them, to `before`,
// and leaves what the next RMSNorm wants: kCount times 32 outputs are a part of the squares.
// Through `shared`, kStoreBytes of the warp's own.
template <int kFirst, int kCount, int kFragments>
__device__ __forceinline__ void AddToRows(const float (&sums)[kFragments][4],
                                          const float2 (&scales)[kFragments], const float2& factors,
                                          const RowsBefore<kCount>& before, const GemmStore& store,
                                          unsigned char* shared, int row, int column) {
  static_assert(kCount * 32 == kSquareColumns);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool next = store.next.weight != nullptr;
  float squares[4] = {0, 0, 0, 0};
#pragma unroll
  for (int pass = 0; pass < kCount; ++pass) {
    StageSums(sums, scales, factors, kFirst + pass * 4, shared);
    const int output = column + (kFirst + pass * 4) * 8 + lane % 8 * 4;
    if (output >= store.n) continue;
    float4 weight = {0, 0, 0, 0};
    if (next) weight = __ldg(reinterpret_cast<const float4*>(store.next.weight + output));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t r = row + i * 4 + lane / 8;
      if (r >= store.rows) continue;
      const float4 add = *reinterpret_cast<const float4*>(
          shared + (i * 4 + lane / 8) * kStoreRowBytes + lane % 8 * 16);
      const float4& b = before.values[pass][i];
      const float4 v = {b.x + add.x, b.y + add.y, b.z + add.z, b.w + add.w};
      StoreFour(static_cast<float*>(store.out) + r * store.stride + output, v);
      if (!next) continue;
      StoreFour(static_cast<__nv_bfloat16*>(store.next.scaled) + r * store.n + output,
                {v.x * weight.x, v.y * weight.y, v.z * weight.z, v.w * weight.w});
      squares[i] += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
  }
  const int part = column / kSquareColumns + kFirst * 8 / kSquareColumns;
  if (!next || part * kSquareColumns >= store.n) return;
  const int parts = (store.n + kSquareColumns - 1) / kSquareColumns;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int step = 1; step < 8; step *= 2) {
      squares[i] += __shfl_xor_sync(kFullWarp, squares[i], step);
    }
    const int64_t r = row + i * 4 + lane / 8;
    if (lane % 8 == 0 && r < store.rows) store.next.squares[r * parts + part] = squares[i];
  }
}

// Rows of the residual stream that NextNorm left, before sums are added to them: of 16 rows from
// `row` on, kCount times 32 outputs from `column` on. A lane has eight neighbours of every eighth
// row: 64 bytes of a row at a time.
template <int kCount>
struct ScaledBefore {
  uint4 values[kCount][2];

  __device__ __forceinline__ void Load(const GemmStore& store, int row, int column) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int64_t row0 = row + lane / 4;
    const int first = column + lane % 4 * 8;
    const __nv_bfloat16* const from =
        static_cast<const __nv_bfloat16*>(store.next.scaled) + row0 * store.n + first;
#pragma unroll
    for (int pass = 0; pass < kCount; ++pass) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        values[pass][i] = {0, 0, 0, 0};
        if (row0 + i * 8 < store.rows && first + pass * 32 < store.n) {
          values[pass][i] =
              *reinterpret_cast<const uint4*>(from + int64_t{i} * 8 * store.n + pass * 32);
        }
      }
    }
  }
};

// Two rows' values, of a pair of bf16: times `unscale`, plus `add`; what is left of them in turn.
__device__ __forceinline__ uint32_t AddToPair(uint32_t before, const float2& unscale,
                                              const float2& weight, float2& v, float& squares) {
  v.x = fmaf(__uint_as_float(before << 16), unscale.x, v.x);
  v.y = fmaf(__uint_as_float(before & 0xffff0000u), unscale.y, v.y);
  squares = fmaf(v.x, v.x, squares);
  squares = fmaf(v.y, v.y, squares);
  return PackBf16(v.x * weight.x, v.y * weight.y);
}

// AddToRows, where rows are in bf16 only (NextNorm::unscale): of fragments from number kFirst on,
// kCount times 32 outputs, to `before` from number kBefore on.
template <int kFirst, int kBefore, int kCount, int kAllBefore, int kFragments>
__device__ __forceinline__ void AddToScaledRows(const float (&sums)[kFragments][4],
                                                const float2 (&scales)[kFragments],
                                                const float2& factors,
                                                const ScaledBefore<kAllBefore>& before,
                                                const GemmStore& store, unsigned char* shared,
                                                int row, int column) {
  static_assert(kCount * 32 == kSquareColumns && kBefore + kCount <= kAllBefore);
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  float* const rows_out = static_cast<float*>(store.out);
  float squares[2] = {0, 0};
#pragma unroll
  for (int pass = 0; pass < kCount; ++pass) {
    const int output = column + (kFirst + pass * 4) * 8 + t * 8;
    const bool inside = output < store.n;
    float2 weight[4], unscale[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      weight[i] = unscale[i] = {0, 0};
      if (inside) {
        weight[i] = __ldg(reinterpret_cast<const float2*>(store.next.weight + output) + i);
        unscale[i] = __ldg(reinterpret_cast<const float2*>(store.next.unscale + output) + i);
      }
    }
    StageSums(sums, scales, factors, kFirst + pass * 4, shared);
    if (!inside) continue;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t r = row + i * 8 + g;
      if (r >= store.rows) continue;
      const auto* const add =
          reinterpret_cast<const float4*>(shared + (i * 8 + g) * kStoreRowBytes + t * 32);
      const float4 low = add[0], high = add[1];
      float2 v[4] = {{low.x, low.y}, {low.z, low.w}, {high.x, high.y}, {high.z, high.w}};
      const uint4& b = before.values[kBefore + pass][i];
      uint4 scaled;
      scaled.x = AddToPair(b.x, unscale[0], weight[0], v[0], squares[i]);
      scaled.y = AddToPair(b.y, unscale[1], weight[1], v[1], squares[i]);
      scaled.z = AddToPair(b.z, unscale[2], weight[2], v[2], squares[i]);
      scaled.w = AddToPair(b.w, unscale[3], weight[3], v[3], squares[i]);
      *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(store.next.scaled) + r * store.n +
                                output) = scaled;
      if (rows_out == nullptr) continue;
      float* const to = rows_out + r * store.stride + output;
      StoreFour(to, {v[0].x, v[0].y, v[1].x, v[1].y});
      StoreFour(to + 4, {v[2].x, v[2].y, v[3].x, v[3].y});
    }
  }
  const int part = (column + kFirst * 8) / kSquareColumns;
  if (part * kSquareColumns >= store.n) return;
  const int parts = (store.n + kSquareColumns - 1) / kSquareColumns;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    squares[i] += __shfl_xor_sync(kFullWarp, squares[i], 1);
    squares[i] += __shfl_xor_sync(kFullWarp, squares[i], 2);
    const int64_t r = row + i * 8 + g;
    if (t == 0 && r < store.rows) store.next.squares[r * parts + part] = squares[i];
  }
}

// The results of the product for any alignment, one value at a time.
template <int kColumns>
__device__ __forceinline__ void StoreSumsByElement(const float (&sums)[kColumns / 8][4],
                                                   const float2& factors, const GemmStore& store,
                                                   int row, int column) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool swiglu = store.kind == GemmStore::Kind::kSwiGlu;
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    if (swiglu && j % 2 != 0) continue;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int64_t r = row + lane / 4 + e / 2 * 8;
      const int output = column + j * 8 + lane % 4 * 2 + e % 2;
      if (r >= store.rows || output >= store.n) continue;
      const float factor = e < 2 ? factors.x : factors.y;
      const float v = sums[j][e] * (store.scale == nullptr ? 1.0f : store.scale[output]) * factor;
      float* const f32 = static_cast<float*>(store.out) + r * store.stride;
      __nv_bfloat16* const bf16 = static_cast<__nv_bfloat16*>(store.out) + r * store.stride;
      switch (store.kind) {
        case GemmStore::Kind::kAddScaled:  // LaunchGemm sends it another way
          break;
        case GemmStore::Kind::kF32:
          f32[output] = v;
          break;
        case GemmStore::Kind::kAdd:
          f32[output] += v;
          break;
        case GemmStore::Kind::kBf16:
          bf16[output] = FromFloat<__nv_bfloat16>(v);
          if (output >= store.tail_begin && output < store.tail_end) {
            store.tail[r * store.tail_stride + output - store.tail_begin] = v;
          }
          break;
        case GemmStore::Kind::kSwiGlu: {
          constexpr int kLast = kColumns / 8 - 1;
          const float up = sums[j < kLast ? j + 1 : j][e] *
                           (store.scale == nullptr ? 1.0f : store.scale[output + 8]) * factor;
          bf16[output / 16 * 8 + output % 8] = FromFloat<__nv_bfloat16>(SiluToBf16(v) * up);
        }
      }
    }
  }
}

}  // namespace mneme

#endif  // MNEME_KERNELS_CUDA_GEMM_STORE_CUH_
