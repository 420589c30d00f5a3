// Backend: where the network's arithmetic runs. One params struct per operation and one shape check
// for all backends (ops.cc); implementations in cpu/ and cuda/.
//
// Order: operations called by one thread take effect in the order of the calls; CopyOut returns
// when everything that the thread asked for before has happened. Results must not depend on the
// number of threads or on who shares a call.

#ifndef MNEME_KERNELS_BACKEND_H_
#define MNEME_KERNELS_BACKEND_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/buffer.h"
#include "kernels/cpu/isa.h"
#include "kernels/dtype.h"
#include "kernels/landmark_topk.h"
#include "kernels/ops.h"
#include "kernels/packed_weight.h"

namespace mneme {

// Thread-safe: operations may be called from any number of threads; they share the backend's
// workers. Every operation returns INVALID_ARGUMENT for impossible shapes (the message names the
// value), INTERNAL for a lost device.
class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu" or "cuda".
  virtual std::string name() const = 0;
  // For people: threads, instruction sets, device name.
  virtual std::string description() const = 0;

  // Whether its memory is not the host's: what is read often should then lie in a Buffer.
  virtual bool has_own_memory() const { return false; }
  // kBf16 where products of bf16 operands are faster than those of f32, else kF32.
  virtual DType fast_dtype() const = 0;
  // What the network's activations should be between operations, where operands of products are
  // `compute_dtype`: what Matmul writes and ConvSilu, Ssd, GateNorm and ChunkAttention read. Where
  // it is kBf16, weights may be packed for `swiglu`, and ChunkAttention norms q and k. What a
  // backend does not do is UNIMPLEMENTED.
  virtual DType activation_dtype(DType compute_dtype) const {
    static_cast<void>(compute_dtype);
    return DType::kF32;
  }
  // Rows that one operation should get at one time: enough to fill the device, few enough to stay
  // in its caches.
  virtual int64_t pass_rows() const = 0;
  // Runs fn(0) .. fn(n_passes - 1), independent of each other: side by side where the backend has
  // idle workers.
  virtual void RunPasses(int64_t n_passes, absl::FunctionRef<void(int64_t)> fn) = 0;
  // Runs `fn`, which calls operations of the calling thread and nothing else, the same ones with
  // the same params whenever it comes with the same key; only what the memory holds may differ. So
  // a backend may repeat what it saw the operations do, without calling `fn`. Operations that read
  // host memory (a table without its backend_ copy) are right in it, but are not repeated this way.
  // The first number of a key is one of NewRepeatId: keys with it end with what the memory belongs
  // to.
  virtual absl::Status Repeat(absl::Span<const int64_t> key, absl::FunctionRef<absl::Status()> fn) {
    static_cast<void>(key);
    return fn();
  }
  // Never given before.
  static int64_t NewRepeatId();

  // RESOURCE_EXHAUSTED when there is not that much memory.
  virtual absl::StatusOr<Buffer> Allocate(int64_t bytes) = 0;
  virtual absl::Status CopyIn(void* to, const void* host, int64_t bytes) = 0;
  // The same for what this thread does next alone: nothing is waited for. Other threads see it once
  // this one has called Synchronize or CopyOut.
  virtual absl::Status Upload(void* to, const void* host, int64_t bytes) {
    return CopyIn(to, host, bytes);
  }
  virtual absl::Status CopyOut(void* host, const void* from, int64_t bytes) = 0;
  virtual absl::Status Copy(void* to, const void* from, int64_t bytes) = 0;
  virtual absl::Status Zero(void* to, int64_t bytes) = 0;
  // Waits until everything that this thread asked for has happened, so that other threads may go
  // on with its results.
  virtual absl::Status Synchronize() { return absl::OkStatus(); }

  // The matrix whose rows are those of `parts`, one after the other (equal cols and dtype). int8
  // values and scales are used exactly in every precision; f32 values are rounded to bf16 where
  // operands are bf16. The sources may go away afterwards.
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackWeight(absl::Span<const WeightSource> parts,
                                                           const PackOptions& options);

  absl::Status Embed(const EmbedParams& params);
  absl::Status RmsNorm(const RmsNormParams& params);
  absl::Status GateNorm(const GateNormParams& params);
  absl::Status HeadNorm(const HeadNormParams& params);
  absl::Status Matmul(const MatmulParams& params);
  absl::Status ConvSilu(const ConvSiluParams& params);
  absl::Status Ssd(const SsdParams& params);
  absl::Status SsmStep(const SsdParams& params);
  // ConvSilu, then SsmStep over the same sequences on what it gave: conv.out is ssm.xbc. Whether
  // anything is left there is the backend's choice.
  absl::Status ConvSsmStep(const ConvSiluParams& conv, const SsdParams& ssm);
  absl::Status ChunkInput(const ChunkInputParams& params);
  absl::Status ChunkAttention(const ChunkAttentionParams& params);
  absl::Status SwiGlu(const SwiGluParams& params);
  absl::Status WritePages(const WritePagesParams& params);
  absl::Status HsaAttend(const HsaAttendParams& params);
  absl::Status ChunkLook(const ChunkLookParams& params);
  absl::Status ArgMax(const ArgMaxParams& params);

  // Scores all landmarks for a batch of queries and keeps the k best of each.
  absl::Status LandmarkTopK(const LandmarkTopKParams& params);

 protected:
  virtual absl::StatusOr<std::unique_ptr<PackedWeight>> DoPackWeight(
      absl::Span<const WeightSource> parts, const PackOptions& options) = 0;
  virtual absl::Status DoEmbed(const EmbedParams& params) = 0;
  virtual absl::Status DoRmsNorm(const RmsNormParams& params) = 0;
  virtual absl::Status DoGateNorm(const GateNormParams& params) = 0;
  virtual absl::Status DoHeadNorm(const HeadNormParams& params) = 0;
  virtual absl::Status DoMatmul(const MatmulParams& params) = 0;
  // Whether DoMatmul takes the norm of these params; else it gets rows that are normed already.
  virtual bool FusesNorm(const MatmulParams&) const { return false; }
  virtual absl::Status DoConvSilu(const ConvSiluParams& params) = 0;
  virtual absl::Status DoSsd(const SsdParams& params) = 0;
  virtual absl::Status DoSsmStep(const SsdParams& params) = 0;
  virtual absl::Status DoConvSsmStep(const ConvSiluParams& conv, const SsdParams& ssm);
  virtual absl::Status DoChunkInput(const ChunkInputParams& params) = 0;
  virtual absl::Status DoChunkAttention(const ChunkAttentionParams& params) = 0;
  virtual absl::Status DoSwiGlu(const SwiGluParams& params) = 0;
  virtual absl::Status DoWritePages(const WritePagesParams& params) = 0;
  virtual absl::Status DoHsaAttend(const HsaAttendParams& params) = 0;
  virtual absl::Status DoChunkLook(const ChunkLookParams& params) = 0;
  virtual absl::Status DoArgMax(const ArgMaxParams& params) = 0;
  virtual absl::Status DoLandmarkTopK(const LandmarkTopKParams& params) = 0;

 private:
  // RmsNorm or GateNorm of a product's operand into norm.normed.
  absl::Status NormOperand(const MatmulParams& params, DType dtype);
};

struct CpuBackendOptions {
  // Threads, counting the caller; 0: one a core.
  int threads = 0;
  // Highest instruction set to use, whatever the processor offers. (oneDNN, which does the matrix
  // products of many rows, chooses on its own.)
  CpuIsa isa_max = CpuIsa::kAmx;
};

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options);

struct CudaBackendOptions {
  // Which GPU, as the driver counts.
  int device = 0;
  // Most memory of the device that buffers and scratch take together; 0: all but a sixteenth.
  int64_t device_bytes_max = 0;
  // Most page-locked memory of the host, for staging.
  int64_t pinned_bytes_max = int64_t{1} << 30;
  // Passes that run side by side (RunPasses), each on a stream of its own.
  int passes = 2;
  // Products of many rows through cuBLASLt where the machine has it and it is exact.
  bool cublas_lt = true;
};

// Whether this build has a CUDA backend; the machine may still lack a GPU.
bool HasCudaBackend();

// FAILED_PRECONDITION when this build has no CUDA backend, or the machine no driver or no GPU that
// it can use.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaBackendOptions& options);

// `device`: "cpu", "cuda" or "auto" (the fastest that this machine and this build have).
// INVALID_ARGUMENT for another name, FAILED_PRECONDITION when this build or this machine lacks the
// device.
absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(absl::string_view device,
                                                       const CpuBackendOptions& cpu_options);

}  // namespace mneme

#endif  // MNEME_KERNELS_BACKEND_H_
