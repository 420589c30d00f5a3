// Products of many bf16 rows with a weight on Hopper.
//
// Two warpgroups multiply, warps of a third do nothing but start copies. Where a slice of the
// weight's outputs, all of k, fits in shared memory (144 KiB), it stays there and the block walks
// down the rows, 64 of a warpgroup at a time: the warpgroups take turns at the tensor cores, so
// that one writes its results while the other multiplies, and each has its own ring of row tiles.
// Blocks of all slices go through the same rows at the same time: rows come from device memory
// once. For larger k both operands stream through one ring, and the warpgroups share tiles of 128
// rows; two blocks (a cluster) do neighbouring tiles of rows with the same outputs, and each copies
// half of the weight's tile into both.
//
// A block's slice is 192 outputs, or 96 where a resident slice is added to what was there before:
// that is read into registers while the products are under way. Which way is taken depends on the
// shape of the weight alone. Sums walk through k in order.

#include <cuda.h>

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_store.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme {
namespace {

constexpr int kTileK = 64;
constexpr int kTileRowBytes = kTileK * 2;
constexpr int kGroupRows = 64;  // of a warpgroup
constexpr int kGroups = 2;
constexpr int kGroupThreads = 128;
constexpr int kThreads = (kGroups + 1) * kGroupThreads;
constexpr int kResidentBytes = 144 * 1024;

// kResident: the slice of the weight stays. kColumns: outputs of a slice.
template <int kColumns, bool kResident>
struct Plan {
  // A ring of stages for each warpgroup, or one for both.
  static constexpr int kRings = kResident ? kGroups : 1;
  static constexpr int kBlocks = kResident ? 1 : 2;  // of a cluster
  static constexpr int kStages = kResident ? 4 : 5;
  static constexpr int kRows = kResident ? kGroupRows : kGroups * kGroupRows;  // of a stage
  static constexpr int kRowBytes = kRows * kTileRowBytes;
  static constexpr int kWeightRows = kColumns / kBlocks;  // of one copy
  static constexpr int kWeightBytes = kColumns * kTileRowBytes;
  static constexpr int kStageBytes = kRowBytes + (kResident ? 0 : kWeightBytes);
  static constexpr int kRingOffset = kResident ? kResidentBytes : 0;
  static constexpr int kStoreOffset = kRingOffset + kRings * kStages * kStageBytes;
  static constexpr int kBarrierOffset = kStoreOffset + kGroups * 4 * kStoreBytes;
  static constexpr int kSharedBytes = kBarrierOffset + (2 * kRings * kStages + 1) * 8;
  static_assert(kSharedBytes <= 227 * 1024);
};

// Position in a ring.
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Grid: whole clusters of Plan::kBlocks; resident: a multiple of `slices`. Shared:
// Plan::kSharedBytes. Row tiles are the rows of a cluster at a time.
template <GemmStore::Kind kKind, int kColumns, bool kResident>
__global__ void __launch_bounds__(kThreads, 1)
    WgmmaGemmKernel(const __grid_constant__ CUtensorMap a_map,
                    const __grid_constant__ CUtensorMap weight_map, const GemmStore store,
                    const int row_tiles, const int slices, const int k_tiles) {
#ifdef MNEME_HAS_WGMMA
  using P = Plan<kColumns, kResident>;
  unsigned char* const shared = DynamicShared();
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(shared + P::kBarrierOffset);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int group = warp / 4;  // kGroups: the warps that copy
  const int ring = kResident ? (group < kGroups ? group : warp % 4) : 0;
  uint64_t* const full = barriers + ring * 2 * P::kStages;
  uint64_t* const empty = full + P::kStages;
  uint64_t* const weight_full = barriers + P::kRings * 2 * P::kStages;
  unsigned char* const stages = shared + P::kRingOffset + ring * P::kStages * P::kStageBytes;

  if (threadIdx.x == 0) {
    for (int r = 0; r < P::kRings; ++r) {
      for (int s = 0; s < P::kStages; ++s) {
        BarrierInit(barriers + (r * 2 * P::kStages) + s, 1);
        // A lane of each warp that reads it or what is copied beside it.
        BarrierInit(barriers + (r * 2 * P::kStages) + P::kStages + s,
                    kGroups / P::kRings * 4 * P::kBlocks);
      }
    }
    BarrierInit(weight_full, 1);
    BarrierInitFence();
  }
  __syncthreads();
  if (P::kBlocks > 1) ClusterSync();

  // Units of work: resident, one slice and every so many of the row tiles; else all pairs of a row
  // tile and a slice, slices first.
  const int cluster = static_cast<int>(blockIdx.x) / P::kBlocks;
  const int rank = static_cast<int>(blockIdx.x) % P::kBlocks;
  const int clusters = static_cast<int>(gridDim.x) / P::kBlocks;
  const int first = kResident ? cluster / slices : cluster;
  const int step = kResident ? clusters / slices : clusters;
  const int units = kResident ? row_tiles : row_tiles * slices;
  const auto unit_row = [&](int unit) {
    return kResident ? (unit * kGroups + ring) * kGroupRows
                     : (unit / slices * P::kBlocks + rank) * P::kRows;
  };
  const auto unit_column = [&](int unit) {
    return (kResident ? static_cast<int>(blockIdx.x) % slices : unit % slices) * kColumns;
  };

  // Each way out of this `if` is a warpgroup's alone: registers go from the copying one to the
  // others.
  if (group == kGroups) {
    GiveRegisters<24>();
    if (lane != 0 || warp - kGroups * 4 >= P::kRings) return;
    if (kResident && ring == 0) {
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
        BarrierWait(empty + place.stage, place.parity ^ 1);
        BarrierExpect(full + place.stage, P::kStageBytes);
        LoadTile(stage, &a_map, full + place.stage, t * kTileK, unit_row(unit));
        if (!kResident) {
          const int half = rank * P::kWeightRows;
          LoadTileToAll(stage + P::kRowBytes + half * kTileRowBytes, &weight_map,
                        full + place.stage, t * kTileK, unit_column(unit) + half,
                        (1 << P::kBlocks) - 1);
        }
      }
    }
    return;
  }
  TakeRegisters<240>();

  // A stage has been read, in all blocks that copy into it.
  const auto release = [&](int stage) {
    if (P::kBlocks == 1) {
      if (lane == 0) BarrierArrive(empty + stage);
    } else if (lane < P::kBlocks) {
      BarrierArriveAt(empty + stage, lane);
    }
  };

  // Turns: barrier 1 + group opens when the other group has started its last products.
  if (kResident) {
    if (group == 1) NamedArrive(1, kGroups * kGroupThreads);
    BarrierWait(weight_full, 0);
  }
  RingPlace<P::kStages> place;
  StoreScales<kColumns> scales;
  if (kResident) scales.Load(store, unit_column(0));
  for (int unit = first; unit < units; unit += step) {
    const int row = unit_row(unit) + (kResident ? 0 : group * kGroupRows) + warp % 4 * 16;
    const int column = unit_column(unit);
    float sums[kColumns / 8][4];
    // What of it is read from device memory before the products.
    constexpr int kEarly = 12;
    StoreBefore<kEarly> early;
    if (kKind == GemmStore::Kind::kAdd) early.Load(store, row, column);
    int before = 0;
    if (kResident) NamedSync(1 + group, kGroups * kGroupThreads);
    for (int t = 0; t < k_tiles; ++t) {
      const unsigned char* const stage = stages + place.stage * P::kStageBytes;
      const uint64_t a =
          TileDescriptor(stage + (kResident ? 0 : group * kGroupRows * kTileRowBytes));
      const uint64_t w =
          TileDescriptor(kResident ? shared + t * P::kWeightBytes : stage + P::kRowBytes);
      BarrierWait(full + place.stage, place.parity);
      WgmmaFence();
#pragma unroll
      for (int i = 0; i < kTileK / 16; ++i) {
        WgmmaShared<kColumns>(sums, a + 2 * i, w + 2 * i, t + i > 0);  // 2: 32 bytes
      }
      WgmmaCommit();
      if (t > 0) {
        WgmmaWait<1>();
        release(before);
      }
      before = place.stage;
      place.Next();
    }
    if (kResident) NamedArrive(2 - group, kGroups * kGroupThreads);
    WgmmaWait<0>();
    release(before);
    if (!kResident) scales.Load(store, column);
    if constexpr (kKind == GemmStore::Kind::kF32 || kKind == GemmStore::Kind::kAdd) {
      constexpr bool kAdd = kKind == GemmStore::Kind::kAdd;
      StoreF32<kAdd, 0>(sums, scales.values, early, store, row, column);
      if constexpr (kColumns / 8 > kEarly) {
        static_assert(kColumns / 8 == 2 * kEarly);
        if (kAdd) early.Load(store, row, column + kEarly * 8);
        StoreF32<kAdd, kEarly>(sums, scales.values, early, store, row, column);
      }
    } else {
      StoreBf16<kKind == GemmStore::Kind::kSwiGlu>(
          sums, scales.values, store, shared + P::kStoreOffset + warp * kStoreBytes, row, column);
    }
  }
  if (P::kBlocks > 1) ClusterSync();  // the other block may still tell this one's barriers
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

template <GemmStore::Kind kKind, int kColumns, bool kResident>
absl::Status LaunchPlan(const GemmParams& p, CudaStream& stream) {
  using P = Plan<kColumns, kResident>;
  CUtensorMap a, weight;
  CUresult error = MapMatrix(p.a, p.a_stride, p.rows, p.k, P::kRows, &a);
  if (error == CUDA_SUCCESS) {
    error = MapMatrix(p.weight, p.weight_stride, p.n, p.k, P::kWeightRows, &weight);
  }
  if (error != CUDA_SUCCESS) {
    return absl::InternalError(absl::StrCat("Matmul of many rows: no map of [", p.rows, ", ", p.k,
                                            "], stride ", p.a_stride, ": error ",
                                            static_cast<int>(error)));
  }
  const int64_t slices = CeilDiv(p.n, kColumns);
  const int64_t row_tiles = CeilDiv(p.rows, P::kBlocks * kGroups * kGroupRows);
  const int64_t clusters_max = stream.device().multiprocessors / P::kBlocks;
  const int64_t clusters =
      kResident ? slices * std::max<int64_t>(1, std::min(clusters_max / slices, row_tiles))
                : std::min(clusters_max, slices * row_tiles);
  const auto kernel = WgmmaGemmKernel<kKind, kColumns, kResident>;
  RETURN_IF_CUDA_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, P::kSharedBytes));
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {P::kBlocks, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(clusters * P::kBlocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = P::kSharedBytes;
  config.stream = stream.get();
  config.attrs = &cluster;
  config.numAttrs = 1;
  return LaunchStatus(
      cudaLaunchKernelEx(&config, kernel, a, weight, GemmStore::Of(p), static_cast<int>(row_tiles),
                         static_cast<int>(slices), static_cast<int>(CeilDiv(p.k, kTileK))),
      "Matmul of many rows");
}

template <GemmStore::Kind kKind>
absl::Status LaunchKind(const GemmParams& p, CudaStream& stream) {
  constexpr int kResidentColumns = kKind == GemmStore::Kind::kAdd ? 96 : 192;
  if (CeilDiv(p.k, kTileK) * kTileRowBytes * 192 <= kResidentBytes) {
    return LaunchPlan<kKind, kResidentColumns, true>(p, stream);
  }
  return LaunchPlan<kKind, 192, false>(p, stream);
}

}  // namespace

bool CanWgmmaGemm(const GemmParams& p, const DeviceInfo& device) {
  constexpr int64_t kMost = int64_t{1} << 30;  // rows and tiles are counted in 32 bits
  return device.major == 9 && p.dtype == DType::kBf16 && p.rows < kMost && p.n < kMost &&
         CeilDiv(p.rows, 128) * CeilDiv(p.n, 96) < kMost && Encoder() != nullptr &&
         GemmStore::Of(p).aligned();
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
  }
  return absl::InternalError("Matmul of many rows: unknown kind of result");
}

}  // namespace mneme
