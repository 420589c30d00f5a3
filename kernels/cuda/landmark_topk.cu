// The landmark scan behind the launcher that all backends' operations have; how it works is in
// landmark_topk_kernels.cuh.

#include <cstdint>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/landmark_topk_kernels.cuh"

namespace mneme {

absl::Status CudaLandmarkTopK(const LandmarkTopKParams& params, CudaStream& stream) {
  using landmark_scan::HostSlab;
  using landmark_scan::Slab;
  if (params.n_queries == 0) return absl::OkStatus();
  std::vector<HostSlab> host_slabs;
  int64_t rows = 0;
  bool aligned = true;
  for (const LandmarkSlab& slab : params.slabs) {
    host_slabs.push_back({slab.rows, slab.row_count});
    rows += slab.row_count;
    aligned = aligned && reinterpret_cast<uintptr_t>(slab.rows) % 16 == 0;
  }
  // Keys hold 32 bits of a row's index.
  if (rows > int64_t{std::numeric_limits<uint32_t>::max()}) {
    return absl::InvalidArgumentError(
        absl::StrCat("LandmarkTopK: ", rows, " landmarks, at most 2^32 - 1 in one scan"));
  }
  landmark_scan::Shape shape = {.dtype = params.dtype,
                                .dim = params.dim,
                                .n_queries = params.n_queries,
                                .k = static_cast<int>(params.k),
                                .aligned = aligned};
  const DeviceInfo& device = stream.device();
  const landmark_scan::Machine machine = {.multiprocessors = device.multiprocessors,
                                          .major = device.major,
                                          .shared_bytes_max = device.shared_bytes_max};
  landmark_scan::Plan plan = landmark_scan::PlanScan(shape, machine);
  int64_t tile_count = 0;
  const std::vector<Slab> slabs = landmark_scan::CutSlabs(host_slabs, plan.tile_rows, &tile_count);
  ASSIGN_OR_RETURN(const Slab* table,
                   stream.UploadOf(slabs.data(), static_cast<int64_t>(slabs.size())));
  // Passes behind the first take fewer queries: no larger workspace, the same tiles.
  ASSIGN_OR_RETURN(void* workspace, stream.Scratch(plan.workspace_bytes()));
  for (int64_t q = 0; q < params.n_queries; q += plan.pass_queries) {
    shape.n_queries = params.n_queries - q;
    plan = landmark_scan::PlanScan(shape, machine);
    const int64_t count = std::min<int64_t>(plan.pass_queries, shape.n_queries);
    const landmark_scan::Args args = {.queries = params.queries + q * params.dim,
                                      .n_queries = static_cast<int>(count),
                                      .dim = static_cast<int>(params.dim),
                                      .dtype = params.dtype,
                                      .slabs = table,
                                      .slab_count = static_cast<int>(slabs.size()),
                                      .tile_count = tile_count,
                                      .k = shape.k,
                                      .workspace = workspace};
    RETURN_IF_CUDA_ERROR(landmark_scan::LaunchScan(plan, args, params.indices + q * params.k,
                                                   params.scores + q * params.k, stream.get()));
  }
  return absl::OkStatus();
}

}  // namespace mneme
