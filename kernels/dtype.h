// Element types of tensors, and bf16 conversion.

#ifndef MNEME_KERNELS_DTYPE_H_
#define MNEME_KERNELS_DTYPE_H_

#include <cstdint>
#include <cstring>

namespace mneme {

enum class DType : uint8_t { kF32 = 0, kBf16 = 1, kI8 = 2, kI32 = 3, kI64 = 4 };

constexpr int DTypeBytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBf16:
      return 2;
    case DType::kI8:
      return 1;
    case DType::kI64:
      return 8;
  }
  return 0;
}

// "f32", "bf16", "i8", "i32", "i64".
const char* DTypeName(DType dtype);

// bfloat16 in memory: the upper half of a float32.
using Bf16 = uint16_t;

inline float Bf16ToFloat(Bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

// Round to nearest, ties to even; a NaN stays a NaN.
inline Bf16 FloatToBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<Bf16>((bits >> 16) | 0x40);
  return static_cast<Bf16>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

}  // namespace mneme

#endif  // MNEME_KERNELS_DTYPE_H_
