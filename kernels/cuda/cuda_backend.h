// The network's operations on a GPU.
//
// Order. Each calling thread has a CUDA stream of its own (created at its first operation, taken
// back when the thread ends), and its operations are queued there; threads are not ordered among
// each other by the device. What lets threads hand memory to each other all the same: CopyOut waits
// for the thread's stream; CopyIn, Copy, Zero and PackWeight wait too when nothing else of the
// thread was under way before them (so a reader's state that one thread zeroes or clones is ready
// for every other when the call returns); and an operation that fails waits before it returns its
// error. A thread that runs other operations on shared memory ends with a CopyOut before others go
// on, as the model's passes do.
//
// Host memory. Params name memory of the device, but for what backend.h and ops.h call host memory
// and two that callers have on the host today:
//   - LandmarkTopK: queries, indices, scores and each slab's rows may be host memory, each on its
//     own. Queries and results go through staging, which is right for them; a slab on the host is
//     copied up at each scan, which is right but as slow as the bus: for speed, landmarks must lie
//     in a Buffer.
//   - HsaAttend: the pages that the table names may be host memory. Unless `pages_resident` says
//   that
//     none is, the table is read back, and host pages are copied up, each once a call; for speed,
//     pages must lie in a Buffer and the caller must say so.

#ifndef MNEME_KERNELS_CUDA_CUDA_BACKEND_H_
#define MNEME_KERNELS_CUDA_CUDA_BACKEND_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/device.h"

namespace mneme {

// The device, its memory and its streams. Thread-safe. Shared: the backend and, while it gives its
// stream back, a thread that ends.
class CudaDevice {
 public:
  CudaDevice(const DeviceInfo& device_info, int64_t device_bytes_max, int64_t pinned_bytes_max);
  ~CudaDevice();

  const DeviceInfo info;
  MemoryPool device_memory;
  MemoryPool pinned_memory;

  absl::StatusOr<CudaStream*> TakeStream();
  void ReturnStream(CudaStream* stream);

 private:
  absl::Mutex mutex_;
  std::vector<std::unique_ptr<CudaStream>> streams_ ABSL_GUARDED_BY(mutex_);
  std::vector<CudaStream*> idle_ ABSL_GUARDED_BY(mutex_);
};

// Thread-safe. CreateCudaBackend makes it.
class CudaBackend : public Backend {
 public:
  CudaBackend(std::shared_ptr<CudaDevice> device, const CudaBackendOptions& options);
  ~CudaBackend() override;

  std::string name() const override { return "cuda"; }
  std::string description() const override;
  bool has_own_memory() const override { return true; }
  DType fast_dtype() const override { return DType::kBf16; }
  DType activation_dtype(DType compute_dtype) const override { return compute_dtype; }
  int64_t pass_rows() const override;
  void RunPasses(int64_t n_passes, absl::FunctionRef<void(int64_t)> fn) override;
  // A captured graph a key and thread, replayed as long as the thread's scratch memory stays where
  // it was.
  absl::Status Repeat(absl::Span<const int64_t> key,
                      absl::FunctionRef<absl::Status()> fn) override;

  absl::StatusOr<Buffer> Allocate(int64_t bytes) override;
  absl::Status CopyIn(void* to, const void* host, int64_t bytes) override;
  absl::Status Upload(void* to, const void* host, int64_t bytes) override;
  absl::Status CopyOut(void* host, const void* from, int64_t bytes) override;
  absl::Status Copy(void* to, const void* from, int64_t bytes) override;
  absl::Status Zero(void* to, int64_t bytes) override;
  absl::Status Synchronize() override;

  // The calling thread's stream, for benches and tests that time the device.
  absl::StatusOr<CudaStream*> ThreadStream();

 protected:
  absl::StatusOr<std::unique_ptr<PackedWeight>> DoPackWeight(absl::Span<const WeightSource> parts,
                                                             const PackOptions& options) override;
  absl::Status DoEmbed(const EmbedParams& params) override;
  absl::Status DoRmsNorm(const RmsNormParams& params) override;
  absl::Status DoGateNorm(const GateNormParams& params) override;
  absl::Status DoHeadNorm(const HeadNormParams& params) override;
  absl::Status DoMatmul(const MatmulParams& params) override;
  bool FusesNorm(const MatmulParams& params) const override;
  absl::Status DoConvSilu(const ConvSiluParams& params) override;
  absl::Status DoSsd(const SsdParams& params) override;
  absl::Status DoSsmStep(const SsdParams& params) override;
  absl::Status DoConvSsmStep(const ConvSiluParams& conv, const SsdParams& ssm) override;
  absl::Status DoChunkInput(const ChunkInputParams& params) override;
  absl::Status DoChunkAttention(const ChunkAttentionParams& params) override;
  absl::Status DoSwiGlu(const SwiGluParams& params) override;
  absl::Status DoWritePages(const WritePagesParams& params) override;
  absl::Status DoHsaAttend(const HsaAttendParams& params) override;
  absl::Status DoChunkLook(const ChunkLookParams& params) override;
  absl::Status DoArgMax(const ArgMaxParams& params) override;
  absl::Status DoLandmarkTopK(const LandmarkTopKParams& params) override;

 private:
  // Runs `fn` as one operation on the calling thread's stream.
  absl::Status Run(absl::FunctionRef<absl::Status(CudaStream&)> fn);
  // The same for a copy: waits for it when the stream was idle before.
  absl::Status RunCopy(absl::FunctionRef<absl::Status(CudaStream&)> fn);

  const std::shared_ptr<CudaDevice> device_;
  const std::unique_ptr<CublasLt> cublas_lt_;  // null: not found, products use our own kernel
  ThreadPool pool_;
};

}  // namespace mneme

#endif  // MNEME_KERNELS_CUDA_CUDA_BACKEND_H_
