// Sixteen floats at a time, for the files that are compiled once per instruction set.
//
// The compiler's own vector types are used, so that one source gives AVX-512, AVX2 (two halves) and
// baseline code; only where an instruction has no equivalent in C++ does an #if choose it. Included
// by vector_kernels_*.cc alone; everything is local to the file that includes it, because the same
// inline function compiled for two instruction sets must never be merged by the linker. For the
// same reason nothing here or there uses inline functions of the standard library.

#ifndef MNEME_KERNELS_CPU_SIMD_H_
#define MNEME_KERNELS_CPU_SIMD_H_

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "kernels/dtype.h"

#define MNEME_INLINE static inline __attribute__((always_inline))

namespace mneme {
namespace {

constexpr int kLanes = 16;

typedef float F32x16 __attribute__((vector_size(64)));
typedef float F32x8 __attribute__((vector_size(32)));
typedef float F32x4 __attribute__((vector_size(16)));
typedef int32_t I32x16 __attribute__((vector_size(64)));
typedef uint32_t U32x16 __attribute__((vector_size(64)));
typedef uint16_t U16x16 __attribute__((vector_size(32)));

MNEME_INLINE int64_t MinI(int64_t a, int64_t b) { return a < b ? a : b; }
MNEME_INLINE int64_t RoundUpI(int64_t a, int64_t unit) { return (a + unit - 1) / unit * unit; }

MNEME_INLINE F32x16 Splat(float x) { return x - F32x16{}; }

MNEME_INLINE F32x16 Load(const float* p) {
  F32x16 v;
  memcpy(&v, p, sizeof v);
  return v;
}
MNEME_INLINE void Store(float* p, F32x16 v) { memcpy(p, &v, sizeof v); }

// The first n lanes (0 .. 16); the others read as 0.
MNEME_INLINE F32x16 LoadN(const float* p, int64_t n) {
#if defined(__AVX512F__)
  return (F32x16)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return Load(lanes);
#endif
}
MNEME_INLINE void StoreN(float* p, F32x16 v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#else
  float lanes[kLanes];
  Store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
#endif
}

MNEME_INLINE F32x16 Select(I32x16 mask, F32x16 yes, F32x16 no) {
  return (F32x16)((mask & (I32x16)yes) | (~mask & (I32x16)no));
}
MNEME_INLINE F32x16 Max(F32x16 a, F32x16 b) { return Select(a > b, a, b); }

MNEME_INLINE F32x16 FromBf16(U16x16 v) {
  return (F32x16)(__builtin_convertvector(v, U32x16) << 16);
}
MNEME_INLINE F32x16 LoadBf16(const Bf16* p) {
  U16x16 v;
  memcpy(&v, p, sizeof v);
  return FromBf16(v);
}
MNEME_INLINE F32x16 LoadBf16N(const Bf16* p, int64_t n) {
  Bf16 lanes[kLanes] = {};
  memcpy(lanes, p, n * sizeof(Bf16));
  return LoadBf16(lanes);
}

// Round to nearest, ties to even; a NaN stays a NaN.
MNEME_INLINE U16x16 ToBf16(F32x16 v) {
#if defined(__AVX512BF16__)
  return (U16x16)_mm512_cvtneps_pbh((__m512)v);
#else
  const U32x16 bits = (U32x16)v;
  const U32x16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const U32x16 nan = (U32x16)((bits & 0x7fffffffu) > 0x7f800000u);
  return __builtin_convertvector((nan & ((bits >> 16) | 0x40u)) | (~nan & rounded), U16x16);
#endif
}
MNEME_INLINE void StoreBf16(Bf16* p, F32x16 v) {
  const U16x16 packed = ToBf16(v);
  memcpy(p, &packed, sizeof packed);
}
MNEME_INLINE void StoreBf16N(Bf16* p, F32x16 v, int64_t n) {
  const U16x16 packed = ToBf16(v);
  memcpy(p, &packed, n * sizeof(Bf16));
}

// Element types as template arguments: loads to f32, stores from f32.
struct F32Type {
  typedef float Element;
  MNEME_INLINE F32x16 Get(const float* p) { return Load(p); }
  MNEME_INLINE F32x16 GetN(const float* p, int64_t n) { return LoadN(p, n); }
  MNEME_INLINE void Put(float* p, F32x16 v) { Store(p, v); }
  MNEME_INLINE void PutN(float* p, F32x16 v, int64_t n) { StoreN(p, v, n); }
};
struct Bf16Type {
  typedef Bf16 Element;
  MNEME_INLINE F32x16 Get(const Bf16* p) { return LoadBf16(p); }
  MNEME_INLINE F32x16 GetN(const Bf16* p, int64_t n) { return LoadBf16N(p, n); }
  MNEME_INLINE void Put(Bf16* p, F32x16 v) { StoreBf16(p, v); }
  MNEME_INLINE void PutN(Bf16* p, F32x16 v, int64_t n) { StoreBf16N(p, v, n); }
};

MNEME_INLINE float Sum(F32x16 v) {
  const F32x8 a = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                  __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const F32x4 b =
      __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
  return (b[0] + b[2]) + (b[1] + b[3]);
}

MNEME_INLINE float MaxLane(F32x16 v) {
  v = Max(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = Max(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  v = Max(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  const float a = v[0], b = v[1];
  return a > b ? a : b;
}

// Lane i of the result is the sum of the lanes of v[i]; v is used up.
MNEME_INLINE F32x16 SumEach(F32x16* v) {
  // Each round adds neighbouring lanes of two vectors: after round r, a vector holds the partial
  // sums of 2^(r+1) of the originals.
  for (int i = 0; i < 16; i += 2) {
    v[i] = __builtin_shufflevector(v[i], v[i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12,
                                   28, 14, 30) +
           __builtin_shufflevector(v[i], v[i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13,
                                   29, 15, 31);
  }
  for (int i = 0; i < 16; i += 4) {
    v[i] = __builtin_shufflevector(v[i], v[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13,
                                   28, 29) +
           __builtin_shufflevector(v[i], v[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14,
                                   15, 30, 31);
  }
  for (int i = 0; i < 16; i += 8) {
    v[i] = __builtin_shufflevector(v[i], v[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25,
                                   26, 27) +
           __builtin_shufflevector(v[i], v[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28,
                                   29, 30, 31);
  }
  return __builtin_shufflevector(v[0], v[8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22,
                                 23) +
         __builtin_shufflevector(v[0], v[8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29,
                                 30, 31);
}

// e^x to about 1 ulp (Cephes' expf); below -87.3 it is 0, above 88.3 it stays at 2.2e38.
MNEME_INLINE F32x16 Exp(F32x16 x) {
  const I32x16 vanishes = x < Splat(-87.3f);
  x = Select(x > Splat(88.3f), Splat(88.3f), x);
  const F32x16 magic = Splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const F32x16 shifted = x * 1.44269504f + magic;
  const F32x16 n = shifted - magic;
  const F32x16 r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  F32x16 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const F32x16 y = p * (r * r) + r + 1.0f;
  // Unsigned: of an x that vanishes this may leave the range.
  return (F32x16)(((U32x16)y + ((U32x16)shifted << 23)) & ~(U32x16)vanishes);
}

// 1 / x to about 1 ulp, for x where neither x nor 1 / x leaves the range of normal floats.
MNEME_INLINE F32x16 Reciprocal(F32x16 x) {
#if defined(__AVX512F__)
  const F32x16 guess = (F32x16)_mm512_rcp14_ps((__m512)x);  // 14 bits; one Newton step doubles them
  return guess * (2.0f - x * guess);
#else
  return 1.0f / x;
#endif
}

MNEME_INLINE F32x16 Silu(F32x16 x) { return x * Reciprocal(1.0f + Exp(-x)); }

// log(1 + e^x). log1p(u) = 2 atanh(u / (2 + u)), whose series converges fast for u in [0, 1].
MNEME_INLINE F32x16 Softplus(F32x16 x) {
  const F32x16 magnitude = (F32x16)((I32x16)x & 0x7fffffff);
  const F32x16 u = Exp(-magnitude);
  const F32x16 s = u / (2.0f + u);
  const F32x16 s2 = s * s;
  F32x16 p = s2 * (1.0f / 13) + 1.0f / 11;
  p = p * s2 + 1.0f / 9;
  p = p * s2 + 1.0f / 7;
  p = p * s2 + 1.0f / 5;
  p = p * s2 + 1.0f / 3;
  p = p * s2 + 1.0f;
  return Max(x, F32x16{}) + 2.0f * s * p;
}

}  // namespace
}  // namespace mneme

#endif  // MNEME_KERNELS_CPU_SIMD_H_
