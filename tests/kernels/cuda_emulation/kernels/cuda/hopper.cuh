// What kernels/cuda/hopper.cuh offers, on the emulator; the comments are there.

#ifndef MNEME_TESTS_KERNELS_CUDA_EMULATION_KERNELS_CUDA_HOPPER_CUH_
#define MNEME_TESTS_KERNELS_CUDA_EMULATION_KERNELS_CUDA_HOPPER_CUH_

#define MNEME_HAS_WGMMA 1

#include "kernels/cuda/tensor_core.cuh"

namespace mneme {

inline void FenceAsyncProxy() {}

template <int kRegisters>
void GiveRegisters() {}
template <int kRegisters>
void TakeRegisters() {}

// Arrivals of a phase, arrivals missing in this one, number of the phase: 16, 16 and 32 bits.
inline void PhaseInit(uint64_t* barrier, int arrivals) {
  *barrier = static_cast<uint64_t>(arrivals) << 48 | static_cast<uint64_t>(arrivals) << 32;
}
inline void PhaseArrive(uint64_t* barrier) {
  const uint64_t arrivals = *barrier >> 48, phase = *barrier & 0xffffffffu;
  const uint64_t missing = (*barrier >> 32 & 0xffffu) - 1;
  *barrier = arrivals << 48 |
             (missing == 0 ? arrivals << 32 | ((phase + 1) & 0xffffffffu) : missing << 32 | phase);
}
constexpr int kWarpArrivals = 1;
inline void PhaseArriveOfWarp(uint64_t* barrier, int lane) {
  if (lane == 0) PhaseArrive(barrier);
}
// Bulk copies are done at once.
inline void PhaseExpect(uint64_t*, int) {}
inline void CopyBulk(void* shared, const void* global, int bytes, uint64_t*) {
  CheckAligned(shared, "bulk copy to");
  CheckAligned(global, "bulk copy from");
  std::memcpy(shared, global, static_cast<size_t>(bytes));
}
inline void PhaseArriveAfterCopies(uint64_t* barrier) {
  CopyAsyncCommit();
  CopyAsyncWait<0>();
  PhaseArrive(barrier);
}
inline void PhaseWait(const uint64_t* barrier, uint32_t parity) {
  emulation::Yield();
  while ((*barrier & 1) == parity) emulation::Yield();
}

// Offset in shared memory, leading and stride in units of 16 bytes, 20 bits each; the top bit says
// that chunks are swapped.
inline uint64_t WgmmaDescriptor(const void* shared, uint32_t leading, uint32_t stride) {
  const auto offset = static_cast<const unsigned char*>(shared) - emulation::dynamic_shared;
  return static_cast<uint64_t>(offset / 16) | uint64_t{leading / 16} << 20 |
         uint64_t{stride / 16} << 40;
}
inline uint64_t WgmmaSwappedDescriptor(const void* shared) {
  return WgmmaDescriptor(shared, 16, 1024) | uint64_t{1} << 63;
}
inline uint64_t WgmmaAdvance(uint64_t descriptor, int bytes) {
  return descriptor + static_cast<uint64_t>(bytes / 16);
}
// Two neighbours of row (of A; column of B) `row` from `k` on, k even and below 16.
inline uint32_t WgmmaElements(uint64_t descriptor, int row, int k) {
  constexpr uint64_t kField = (1u << 20) - 1;
  uint64_t at = (descriptor & kField) * 16 + static_cast<uint64_t>(k % 8) * 2;
  const uint64_t core = static_cast<uint64_t>(row / 8) * (descriptor >> 40 & kField) * 16;
  if (descriptor >> 63 != 0) {
    at += core + static_cast<uint64_t>(row % 8) * 128 + static_cast<uint64_t>(k / 8) * 16;
    at ^= (at >> 7 & 7) << 4;
  } else {
    at += core + static_cast<uint64_t>(row % 8) * 16 +
          static_cast<uint64_t>(k / 8) * (descriptor >> 20 & kField) * 16;
  }
  uint32_t elements;
  std::memcpy(&elements, emulation::dynamic_shared + at, 4);
  return elements;
}

inline void WgmmaFence() { __syncwarp(); }
inline void WgmmaCommit() { __syncwarp(); }
template <int kPending>
void WgmmaWait() {
  __syncwarp();
}
// At once, a warp at a time.
template <int kColumns>
void WgmmaBf16(float (&d)[kColumns / 8][4], uint64_t a, uint64_t b, bool add) {
  const int lane = emulation::current->lane, row = emulation::current->warp % 4 * 16 + lane / 4;
  uint32_t rows[4];
  for (int r = 0; r < 4; ++r) {
    rows[r] = WgmmaElements(a, row + r % 2 * 8, lane % 4 * 2 + r / 2 * 8);
  }
  for (int j = 0; j < kColumns / 8; ++j) {
    if (!add) std::fill(d[j], d[j] + 4, 0.0f);
    MmaBf16(d[j], rows, WgmmaElements(b, j * 8 + lane / 4, lane % 4 * 2),
            WgmmaElements(b, j * 8 + lane / 4, lane % 4 * 2 + 8));
  }
}

// Two neighbours along k, from `k` on, of row (of A; column of B) `i` of a swapped operand.
inline uint32_t WgmmaSwappedPair(uint64_t descriptor, bool transposed, int i, int k) {
  if (!transposed) return WgmmaElements(descriptor, i, k);
  uint32_t pair = 0;
  for (int e = 0; e < 2; ++e) {
    uint64_t at = (descriptor & 0xfffff) * 16 + static_cast<uint64_t>((k + e) * 128 + i * 2);
    at ^= (at >> 7 & 7) << 4;
    uint16_t bits;
    std::memcpy(&bits, emulation::dynamic_shared + at, 2);
    pair |= static_cast<uint32_t>(bits) << (16 * e);
  }
  return pair;
}
template <bool kFirst>
void WgmmaSwappedB(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b, bool transposed) {
  const int g = emulation::current->lane / 4, t = emulation::current->lane % 4;
  for (int j = 0; j < 8; ++j) {
    if (kFirst) std::fill(d[j], d[j] + 4, 0.0f);
    MmaBf16(d[j], a, WgmmaSwappedPair(b, transposed, j * 8 + g, t * 2),
            WgmmaSwappedPair(b, transposed, j * 8 + g, t * 2 + 8));
  }
}
template <bool kFirst, bool kTransposedB>
void WgmmaSwapped(float (&d)[8][4], uint64_t a, uint64_t b) {
  const int i = emulation::current->warp % 4 * 16 + emulation::current->lane / 4;
  const int k = emulation::current->lane % 4 * 2;
  uint32_t fragment[4];
  for (int r = 0; r < 4; ++r) {
    fragment[r] = WgmmaSwappedPair(a, false, i + r % 2 * 8, k + r / 2 * 8);
  }
  WgmmaSwappedB<kFirst>(d, fragment, b, kTransposedB);
}
template <bool kFirst, bool kTransposedB = true>
void WgmmaRows(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
  WgmmaSwappedB<kFirst>(d, a, b, kTransposedB);
}

inline void KeepRegisters(const uint32_t (&)[4]) {}

}  // namespace mneme

#endif  // MNEME_TESTS_KERNELS_CUDA_EMULATION_KERNELS_CUDA_HOPPER_CUH_
