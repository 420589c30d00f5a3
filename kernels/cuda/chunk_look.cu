// ChunkLook behind the launcher that all backends' operations have; how it works is in
// chunk_look_kernel.cuh.

#include "kernels/cuda/chunk_look_kernel.cuh"
#include "kernels/cuda/kernels.h"

namespace mneme {

absl::Status CudaChunkLook(const ChunkLookParams& params, CudaStream& stream) {
  return LaunchStatus(look::LaunchChunkLook(params, stream.kernels_overlap(), stream.get()),
                      "ChunkLook");
}

}  // namespace mneme
