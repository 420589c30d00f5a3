// Products of many bf16 rows with a weight on Hopper.
//
// Two warpgroups multiply, warps of a third do nothing but start copies. Where a slice of the
// weight's outputs, all of k, fits in shared memory (144 KiB), it stays there and the block walks
// down the rows, 64 of a warpgroup at a time: the warpgroups take turns at the tensor cores, so
// that one writes its results while the other multiplies, and each has its own ring of row tiles.
// Blocks of all slices go through the same rows at the same time: rows come from device memory
// once. For larger k both operands stream through one ring, and the warpgroups share tiles of 128
// rows.
//
// A block's slice is 192 outputs, or 96 where a resident slice is added to what was there before:
// that is read into registers while the products are under way. Which way is taken depends on the
// shape of the weight, and on whether rows are left ready for their next norm. Sums walk through k
// in order either way.

#include <cuda.h>

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_store.cuh"
#include "kernels/cuda/ring_place.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/wgmma_tiles.cuh"

namespace mneme {
namespace {

constexpr int kTileK = 64;
constexpr int kTileRowBytes = kTileK * 2;
constexpr int kGroupRows = 64;  // of a warpgroup
constexpr int kGroups = 2;
constexpr int kGroupThreads = 128;
constexpr int kThreads = (kGroups + 1) * kGroupThreads;
constexpr int kSharedMax = 227 * 1024;

// kColumns: outputs of a slice. kResident: tiles of k that stay for a slice; 0: they stream.
template <int kColumns, int kResident>
struct Plan {
  // A ring of stages for each warpgroup, or one for both.
  static constexpr int kRings = kResident > 0 ? kGroups : 1;
  static constexpr int kRows = kGroupRows * kGroups / kRings;  // of a stage
  static constexpr int kRowBytes = kRows * kTileRowBytes;
  static constexpr int kWeightBytes = kColumns * kTileRowBytes;
  static constexpr int kStageBytes = kRowBytes + (kResident > 0 ? 0 : kWeightBytes);
  static constexpr int kRingOffset = kResident * kWeightBytes;
  static constexpr int kRest = kGroups * 4 * kStoreBytes + 256;  // 256: barriers
  static constexpr int kFit = (kSharedMax - kRingOffset - kRest) / (kRings * kStageBytes);
  static constexpr int kStages = kFit < 8 ? kFit : 8;
  static constexpr int kStoreOffset = kRingOffset + kRings * kStages * kStageBytes;
  static constexpr int kBarrierOffset = kStoreOffset + kGroups * 4 * kStoreBytes;
  static constexpr int kSharedBytes = kBarrierOffset + (2 * kRings * kStages + 1) * 8;
  static_assert(kStages >= 3 && kSharedBytes <= kSharedMax);
};

// Grid: any; resident: a multiple of `slices`. Shared: Plan::kSharedBytes. Row tiles are pairs of
// 64.
template <GemmStore::Kind kKind, int kColumns, int kResident>
__global__ void __launch_bounds__(kThreads, 1)
    WgmmaGemmKernel(const __grid_constant__ CUtensorMap a_map,
                    const __grid_constant__ CUtensorMap weight_map,
                    const __grid_constant__ GemmStore store, const int row_tiles, const int slices,
                    const int k_tiles) {
#ifdef MNEME_HAS_WGMMA
  using P = Plan<kColumns, kResident>;
  unsigned char* const shared = DynamicShared();
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(shared + P::kBarrierOffset);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int group = warp / 4;  // kGroups: the warps that copy
  const int ring = kResident > 0 ? (group < kGroups ? group : warp % 4) : 0;
  uint64_t* const full = barriers + ring * 2 * P::kStages;
  uint64_t* const empty = full + P::kStages;
  uint64_t* const weight_full = barriers + P::kRings * 2 * P::kStages;
  unsigned char* const stages = shared + P::kRingOffset + ring * P::kStages * P::kStageBytes;

  if (threadIdx.x == 0) {
    for (int r = 0; r < P::kRings; ++r) {
      for (int s = 0; s < P::kStages; ++s) {
        PhaseInit(barriers + (r * 2 * P::kStages) + s, 1);
        PhaseInit(barriers + (r * 2 * P::kStages) + P::kStages + s,
                  kGroups / P::kRings * 4);  // a lane of each warp that reads it
      }
    }
    PhaseInit(weight_full, 1);
    BarrierInitFence();
  }
  __syncthreads();

  // Units of work: resident, one slice and every so many of the row tiles; else all pairs of a row
  // tile and a slice, slices first.
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  const int first = kResident > 0 ? block / slices : block;
  const int step = kResident > 0 ? blocks / slices : blocks;
  const int units = kResident > 0 ? row_tiles : row_tiles * slices;
  const auto unit_row = [&](int unit) {
    return kResident > 0 ? (unit * kGroups + ring) * kGroupRows : unit / slices * P::kRows;
  };
  const auto unit_column = [&](int unit) {
    return (kResident > 0 ? block % slices : unit % slices) * kColumns;
  };

  // Each way out of this `if` is a warpgroup's alone: registers go from the copying one to the
  // others.
  if (group == kGroups) {
    GiveRegisters<24>();
    if (lane != 0 || warp - kGroups * 4 >= P::kRings) return;
    if (kResident > 0 && ring == 0) {
      BarrierExpect(weight_full, k_tiles * P::kWeightBytes);
      for (int t = 0; t < k_tiles; ++t) {
        LoadTile(shared + t * P::kWeightBytes, &weight_map, weight_full, t * kTileK,
                 unit_column(0));
      }
    }
    RingPlace<P::kStages> place;
    for (int unit = first; unit < units; unit += step) {
      for (int t = 0; t < k_tiles; ++t, place.Next()) {
        unsigned char* const stage = stages + place.stage * P::kStageBytes;
        PhaseWait(empty + place.stage, place.parity ^ 1);
        BarrierExpect(full + place.stage, P::kStageBytes);
        LoadTile(stage, &a_map, full + place.stage, t * kTileK, unit_row(unit));
        if (kResident == 0) {
          LoadTile(stage + P::kRowBytes, &weight_map, full + place.stage, t * kTileK,
                   unit_column(unit));
        }
      }
    }
    return;
  }
  TakeRegisters<240>();

  // Turns: barrier 1 + group opens when the other group has started its last products.
  if (kResident > 0) {
    if (group == 1) NamedArrive(1, kGroups * kGroupThreads);
    PhaseWait(weight_full, 0);
  }
  RingPlace<P::kStages> place;
  StoreScales<kColumns> scales;
  if (kResident > 0) scales.Load(store, unit_column(0));
  for (int unit = first; unit < units; unit += step) {
    const int row = unit_row(unit) + (kResident > 0 ? 0 : group * kGroupRows) + warp % 4 * 16;
    const int column = unit_column(unit);
    float sums[kColumns / 8][4];
    // Of what was there, 96 outputs are read before the products.
    constexpr bool kAdd = kKind == GemmStore::Kind::kAdd;
    constexpr int kEarly = 3;
    RowsBefore<kEarly> early;
    if (kAdd) early.Load(store, row, column);
    constexpr bool kAddScaled = kKind == GemmStore::Kind::kAddScaled;
    ScaledBefore<kColumns / 32> scaled;
    if (kAddScaled) scaled.Load(store, row, column);
    const float2 factors = RowFactors(store, row);
    int before = 0;
    if (kResident > 0) NamedSync(1 + group, kGroups * kGroupThreads);
    for (int t = 0; t < k_tiles; ++t) {
      const unsigned char* const stage = stages + place.stage * P::kStageBytes;
      const uint64_t a =
          WgmmaSwappedDescriptor(stage + (kResident > 0 ? 0 : group * kGroupRows * kTileRowBytes));
      const uint64_t w = WgmmaSwappedDescriptor(kResident > 0 ? shared + t * P::kWeightBytes
                                                              : stage + P::kRowBytes);
      PhaseWait(full + place.stage, place.parity);
      WgmmaFence();
#pragma unroll
      for (int i = 0; i < kTileK / 16; ++i) {
        WgmmaBf16<kColumns>(sums, a + 2 * i, w + 2 * i, t + i > 0);  // 2: 32 bytes
      }
      WgmmaCommit();
      if (t > 0) {
        WgmmaWait<1>();
        if (lane == 0) PhaseArrive(empty + before);
      }
      before = place.stage;
      place.Next();
    }
    if (kResident > 0) NamedArrive(2 - group, kGroups * kGroupThreads);
    WgmmaWait<0>();
    if (lane == 0) PhaseArrive(empty + before);
    if (kResident == 0) scales.Load(store, column);
    unsigned char* const way = shared + P::kStoreOffset + warp * kStoreBytes;
    if constexpr (kAdd) {
      AddToRows<0>(sums, scales.values, factors, early, store, way, row, column);
      if constexpr (kColumns > kEarly * 32) {
        static_assert(kColumns == 2 * kEarly * 32);
        early.Load(store, row, column + kEarly * 32);
        AddToRows<kEarly * 4>(sums, scales.values, factors, early, store, way, row, column);
      }
    } else if constexpr (kAddScaled) {
      AddToScaledRows<0, 0, kEarly>(sums, scales.values, factors, scaled, store, way, row, column);
      if constexpr (kColumns > kEarly * 32) {
        AddToScaledRows<kEarly * 4, kEarly, kEarly>(sums, scales.values, factors, scaled, store,
                                                    way, row, column);
      }
    } else if constexpr (kKind == GemmStore::Kind::kF32) {
      const StoreBefore<kColumns / 8> nothing = {};
      StoreF32<false, 0>(sums, scales.values, factors, nothing, store, row, column);
    } else {
      StoreBf16<kKind == GemmStore::Kind::kSwiGlu>(sums, scales.values, factors, store, way, row,
                                                   column);
    }
  }
#endif
}

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver's function, or null.
EncodeTiled FindEncodeTiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
#else
  const cudaError_t error =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<EncodeTiled>(function);
}

EncodeTiled Encoder() {
  static const EncodeTiled encode = FindEncodeTiled();
  return encode;
}

// Of a matrix [rows, k] of bf16, in boxes of `box_rows` rows and kTileK columns.
CUresult MapMatrix(const void* data, int64_t stride, int64_t rows, int64_t k, int box_rows,
                   CUtensorMap* map) {
  const cuuint64_t dims[] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride * 2)};
  const cuuint32_t box[] = {kTileK, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  return Encoder()(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), dims, strides,
                   box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

template <GemmStore::Kind kKind, int kColumns, int kResident>
absl::Status LaunchPlan(const GemmParams& p, CudaStream& stream) {
  using P = Plan<kColumns, kResident>;
  CUtensorMap a, weight;
  CUresult error = MapMatrix(p.a, p.a_stride, p.rows, p.k, P::kRows, &a);
  if (error == CUDA_SUCCESS) {
    error = MapMatrix(p.weight, p.weight_stride, p.n, p.k, kColumns, &weight);
  }
  if (error != CUDA_SUCCESS) {
    return absl::InternalError(absl::StrCat("Matmul of many rows: no map of [", p.rows, ", ", p.k,
                                            "], stride ", p.a_stride, ": error ",
                                            static_cast<int>(error)));
  }
  const int64_t slices = CeilDiv(p.n, kColumns), row_tiles = CeilDiv(p.rows, kGroups * kGroupRows);
  const int64_t multiprocessors = stream.device().multiprocessors;
  const int64_t blocks =
      kResident > 0 ? slices * std::max<int64_t>(1, std::min(multiprocessors / slices, row_tiles))
                    : std::min(multiprocessors, slices * row_tiles);
  return LaunchStatus(Launch(WgmmaGemmKernel<kKind, kColumns, kResident>,
                             static_cast<unsigned>(blocks), kThreads, P::kSharedBytes, stream.get(),
                             a, weight, GemmStore::Of(p), static_cast<int>(row_tiles),
                             static_cast<int>(slices), static_cast<int>(CeilDiv(p.k, kTileK))),
                      "Matmul of many rows");
}

// Tiles of k of a slice that stays: of 192 outputs, of 96.
constexpr int kTilesOf192 = 6, kTilesOf96 = 12;

template <GemmStore::Kind kKind>
absl::Status LaunchKind(const GemmParams& p, CudaStream& stream) {
  const int64_t k_tiles = CeilDiv(p.k, kTileK);
  if constexpr (kKind == GemmStore::Kind::kAdd) {
    if (k_tiles <= kTilesOf192) return LaunchPlan<kKind, 96, kTilesOf192>(p, stream);
    if (k_tiles <= kTilesOf96 && p.next.weight != nullptr) {
      return LaunchPlan<kKind, 96, kTilesOf96>(p, stream);
    }
  } else if constexpr (kKind == GemmStore::Kind::kAddScaled) {
    if (k_tiles <= kTilesOf192) return LaunchPlan<kKind, 96, kTilesOf192>(p, stream);
  } else {
    if (k_tiles <= kTilesOf192) return LaunchPlan<kKind, 192, kTilesOf192>(p, stream);
  }
  return LaunchPlan<kKind, 192, 0>(p, stream);
}

}  // namespace

bool CanWgmmaGemm(const GemmParams& p, const DeviceInfo& device) {
  constexpr int64_t kMost = int64_t{1} << 30;  // rows and tiles are counted in 32 bits
  return device.major == 9 && p.dtype == DType::kBf16 && p.rows < kMost && p.n < kMost &&
         CeilDiv(p.rows, 128) * CeilDiv(p.n, 96) < kMost && Encoder() != nullptr &&
         GemmStore::Of(p).aligned();
}

bool WgmmaStoresNext(const GemmParams& p) {
  return p.accumulate && reinterpret_cast<uintptr_t>(p.next.scaled) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(p.next.weight) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(p.next.unscale) % 16 == 0;
}

absl::Status LaunchWgmmaGemm(const GemmParams& p, CudaStream& stream) {
  switch (GemmStore::Of(p).kind) {
    case GemmStore::Kind::kF32:
      return LaunchKind<GemmStore::Kind::kF32>(p, stream);
    case GemmStore::Kind::kAdd:
      return LaunchKind<GemmStore::Kind::kAdd>(p, stream);
    case GemmStore::Kind::kBf16:
      return LaunchKind<GemmStore::Kind::kBf16>(p, stream);
    case GemmStore::Kind::kSwiGlu:
      return LaunchKind<GemmStore::Kind::kSwiGlu>(p, stream);
    case GemmStore::Kind::kAddScaled:
      return LaunchKind<GemmStore::Kind::kAddScaled>(p, stream);
  }
  return absl::InternalError("Matmul of many rows: unknown kind of result");
}

}  // namespace mneme
