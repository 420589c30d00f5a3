// The network's operations on the processor.

#ifndef MNEME_KERNELS_CPU_CPU_BACKEND_H_
#define MNEME_KERNELS_CPU_CPU_BACKEND_H_

#include <memory>
#include <string>

#include "kernels/backend.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/vector_kernels.h"

namespace mneme {

// Backend memory is plain host memory, so operations read host pointers as they are, and CopyIn and
// CopyOut are copies. Operations have happened when they return. Thread-safe.
class CpuBackend : public Backend {
 public:
  explicit CpuBackend(const CpuBackendOptions& options);

  std::string name() const override { return "cpu"; }
  std::string description() const override;
  DType fast_dtype() const override;
  int64_t pass_rows() const override;
  void RunPasses(int64_t n_passes, absl::FunctionRef<void(int64_t)> fn) override;

  absl::StatusOr<Buffer> Allocate(int64_t bytes) override;
  absl::Status CopyIn(void* to, const void* host, int64_t bytes) override;
  absl::Status CopyOut(void* host, const void* from, int64_t bytes) override;
  absl::Status Copy(void* to, const void* from, int64_t bytes) override;
  absl::Status Zero(void* to, int64_t bytes) override;

 protected:
  absl::StatusOr<std::unique_ptr<PackedWeight>> DoPackWeight(absl::Span<const WeightSource> parts,
                                                             const PackOptions& options) override;
  absl::Status DoEmbed(const EmbedParams& params) override;
  absl::Status DoRmsNorm(const RmsNormParams& params) override;
  absl::Status DoGateNorm(const GateNormParams& params) override;
  absl::Status DoHeadNorm(const HeadNormParams& params) override;
  absl::Status DoMatmul(const MatmulParams& params) override;
  absl::Status DoConvSilu(const ConvSiluParams& params) override;
  absl::Status DoSsd(const SsdParams& params) override;
  absl::Status DoSsmStep(const SsdParams& params) override;
  absl::Status DoChunkInput(const ChunkInputParams& params) override;
  absl::Status DoChunkAttention(const ChunkAttentionParams& params) override;
  absl::Status DoSwiGlu(const SwiGluParams& params) override;
  absl::Status DoWritePages(const WritePagesParams& params) override;
  absl::Status DoHsaAttend(const HsaAttendParams& params) override;
  absl::Status DoChunkLook(const ChunkLookParams& params) override;
  absl::Status DoArgMax(const ArgMaxParams& params) override;
  absl::Status DoLandmarkTopK(const LandmarkTopKParams& params) override;

 private:
  // fn(begin, end) over [0, rows) in parts of at least `least` rows, one a thread at most.
  void ForRows(int64_t rows, int64_t least, absl::FunctionRef<void(int64_t, int64_t)> fn);

  const CpuIsa isa_;
  const VectorKernels& kernels_;
  ThreadPool pool_;
};

}  // namespace mneme

#endif  // MNEME_KERNELS_CPU_CPU_BACKEND_H_
