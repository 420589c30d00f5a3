// Launchers of the network's operations, one an operation, declared for nvcc and the C++ compiler
// alike.
//
// Each queues its work on the stream and returns; params have passed the shape checks of ops.cc.
// All pointers in params are readable by the device (CudaBackend has staged what came as host
// memory), but for the arrays of structs, which are host memory: `sequences` (the states they name
// are device memory) and `slabs` (the rows they name are device memory). A launcher that needs such
// a table on the device takes it there with CudaStream::Upload, and takes memory for partial
// results from CudaStream::Scratch. Sizes may be 0, and pointers are aligned to their element only:
// a kernel that reads 16 bytes at a time checks pointers and strides and has another path.
//
// Errors: RESOURCE_EXHAUSTED when there is no scratch memory, INTERNAL when a launch fails.

#ifndef MNEME_KERNELS_CUDA_KERNELS_H_
#define MNEME_KERNELS_CUDA_KERNELS_H_

#include "absl/status/status.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/landmark_topk.h"
#include "kernels/ops.h"

namespace mneme {

// norms.cu
absl::Status CudaRmsNorm(const RmsNormParams& params, CudaStream& stream);
absl::Status CudaGateNorm(const GateNormParams& params, CudaStream& stream);
absl::Status CudaHeadNorm(const HeadNormParams& params, CudaStream& stream);
absl::Status CudaChunkInput(const ChunkInputParams& params, CudaStream& stream);
absl::Status CudaWritePages(const WritePagesParams& params, CudaStream& stream);
// swiglu.cu
absl::Status CudaSwiGlu(const SwiGluParams& params, CudaStream& stream);
// conv_silu.cu
absl::Status CudaConvSilu(const ConvSiluParams& params, CudaStream& stream);
// ssd.cu, ssm_step.cu
absl::Status CudaSsd(const SsdParams& params, CudaStream& stream);
absl::Status CudaSsmStep(const SsdParams& params, CudaStream& stream);
absl::Status CudaConvSsmStep(const ConvSiluParams& conv, const SsdParams& ssm, CudaStream& stream);
// arg_max.cu
absl::Status CudaArgMax(const ArgMaxParams& params, CudaStream& stream);
// chunk_attention.cu
absl::Status CudaChunkAttention(const ChunkAttentionParams& params, CudaStream& stream);
// hsa_attention.cu
absl::Status CudaHsaAttend(const HsaAttendParams& params, CudaStream& stream);
// chunk_look.cu
absl::Status CudaChunkLook(const ChunkLookParams& params, CudaStream& stream);
// landmark_topk.cu
absl::Status CudaLandmarkTopK(const LandmarkTopKParams& params, CudaStream& stream);

}  // namespace mneme

#endif  // MNEME_KERNELS_CUDA_KERNELS_H_
