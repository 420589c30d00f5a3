// HsaAttend behind the launcher that all backends' operations have; how it works is in
// hsa_attention_kernels.cuh.

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/hsa_attention_kernels.cuh"
#include "kernels/cuda/kernels.h"

namespace mneme {

absl::Status CudaHsaAttend(const HsaAttendParams& params, CudaStream& stream) {
  const hsa::Machine machine = {.multiprocessors = stream.device().multiprocessors,
                                .major = stream.device().major,
                                .shared_bytes_max = stream.device().shared_bytes_max};
  const hsa::Variant variant = hsa::Choose(params, machine);
  if (!hsa::CanCompute(variant, params, machine)) {
    return absl::InvalidArgumentError(absl::StrCat("HsaAttend: pages of ", params.chunk_tokens,
                                                   " tokens and width ", params.head_dim,
                                                   " do not fit in shared memory"));
  }
  ASSIGN_OR_RETURN(void* workspace, stream.Scratch(hsa::WorkspaceBytes(variant, params, machine)));
  RETURN_IF_CUDA_ERROR(hsa::LaunchHsa(variant, params, machine, workspace, stream.get()));
  return absl::OkStatus();
}

}  // namespace mneme
