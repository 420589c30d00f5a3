// ChunkAttention behind the launcher that all backends' operations have; how it works is in
// chunk_attention_kernels.cuh.

#include "absl/strings/str_cat.h"
#include "kernels/cuda/chunk_attention_kernels.cuh"
#include "kernels/cuda/kernels.h"

namespace mneme {

absl::Status CudaChunkAttention(const ChunkAttentionParams& params, CudaStream& stream) {
  using chunk_attention::Variant;
  const Variant variant =
      chunk_attention::CanCompute(Variant::kFast, params) ? Variant::kFast : Variant::kSimple;
  if (!chunk_attention::CanCompute(variant, params)) {
    return absl::InvalidArgumentError(absl::StrCat("ChunkAttention: groups of ", params.group_rows,
                                                   " rows of width ", params.head_dim,
                                                   " do not fit in shared memory"));
  }
  RETURN_IF_CUDA_ERROR(chunk_attention::LaunchChunkAttention(variant, params, stream.get()));
  return absl::OkStatus();
}

}  // namespace mneme
