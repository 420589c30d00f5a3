// One GPU: errors as absl::Status, what the device offers, memory of it with hard limits.

#ifndef MNEME_KERNELS_CUDA_DEVICE_H_
#define MNEME_KERNELS_CUDA_DEVICE_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

namespace mneme {

// RESOURCE_EXHAUSTED for want of memory, FAILED_PRECONDITION without a device or a driver, INTERNAL
// for everything else (a lost device, a fault in a kernel). The message names `what` and CUDA's
// error; `error` must not be cudaSuccess.
absl::Status CudaErrorStatus(cudaError_t error, absl::string_view what);

#define RETURN_IF_CUDA_ERROR(call)                                                        \
  do {                                                                                    \
    if (const cudaError_t mneme_cuda_error_ = (call); mneme_cuda_error_ != cudaSuccess) { \
      return ::mneme::CudaErrorStatus(mneme_cuda_error_, #call);                          \
    }                                                                                     \
  } while (false)

// OK, or the error of a launch: return LaunchStatus(Launch(..), "RmsNorm").
absl::Status LaunchStatus(cudaError_t error, absl::string_view kernel);

struct DeviceInfo {
  int ordinal = 0;
  std::string name;
  int major = 0, minor = 0;
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
  int64_t l2_bytes = 0;
  // Most shared memory of a block, after cudaFuncSetAttribute.
  int64_t shared_bytes_max = 0;
  int64_t shared_bytes_sm = 0;  // of a multiprocessor

  // FAILED_PRECONDITION when there is no driver, no such device, or one older than sm_80.
  static absl::StatusOr<DeviceInfo> Find(int ordinal);
};

constexpr int64_t CeilDiv(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }
constexpr int64_t RoundUpTo(int64_t value, int64_t unit) { return CeilDiv(value, unit) * unit; }

// Memory of the device, or page-locked memory of the host, up to a limit that holds. Released
// blocks are kept for the next request of the same size, as the driver's own allocation stops the
// device; they go back to the driver when the limit or the driver asks for room. Thread-safe. A
// block is released when no work on it is under way.
class MemoryPool {
 public:
  enum class Kind { kDevice, kPinned };

  MemoryPool(Kind kind, int64_t bytes_max) : kind_(kind), bytes_max_(bytes_max) {}
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;
  ~MemoryPool();

  // Aligned to 256 bytes. RESOURCE_EXHAUSTED beyond the limit, or when the driver has no more.
  absl::StatusOr<void*> Allocate(int64_t bytes);
  void Release(void* data);

  int64_t bytes_max() const { return bytes_max_; }
  // Lent out, without what is kept for reuse.
  int64_t bytes_used() const;

 private:
  // Gives kept blocks back to the driver; true when there were some.
  bool DropIdle();
  absl::StatusOr<void*> FromDriver(int64_t bytes);

  const Kind kind_;
  const int64_t bytes_max_;
  mutable absl::Mutex mutex_;
  int64_t used_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t idle_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unordered_map<void*, int64_t> lent_ ABSL_GUARDED_BY(mutex_);
  std::multimap<int64_t, void*> idle_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_KERNELS_CUDA_DEVICE_H_
