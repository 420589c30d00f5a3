#include "kernels/cuda/device.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace mneme {
namespace {

constexpr int64_t kPoolUnit = 256;
// Requests of nearly one size share blocks: sizes are rounded up to this fraction of themselves.
constexpr int64_t kPoolStepsPerDoubling = 8;

int64_t PoolBytes(int64_t bytes) {
  int64_t unit = kPoolUnit;
  while (unit * kPoolStepsPerDoubling * 2 <= bytes) unit *= 2;
  return RoundUpTo(bytes > 0 ? bytes : 1, unit);
}

void GiveBack(MemoryPool::Kind kind, void* data) {
  // Nothing can be done about an error here; a lost device shows at the next operation.
  if (kind == MemoryPool::Kind::kDevice) {
    static_cast<void>(cudaFree(data));
  } else {
    static_cast<void>(cudaFreeHost(data));
  }
}

}  // namespace

absl::Status CudaErrorStatus(cudaError_t error, absl::string_view what) {
  // What a call or a launch reported stays as the thread's last error until it is read.
  static_cast<void>(cudaGetLastError());
  const std::string message =
      absl::StrCat("CUDA: ", what, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  switch (error) {
    case cudaErrorMemoryAllocation:
      return absl::ResourceExhaustedError(message);
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidDevice:
    case cudaErrorNoKernelImageForDevice:
      return absl::FailedPreconditionError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::Status LaunchStatus(cudaError_t error, absl::string_view kernel) {
  return error == cudaSuccess ? absl::OkStatus() : CudaErrorStatus(error, kernel);
}

absl::StatusOr<DeviceInfo> DeviceInfo::Find(int ordinal) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return absl::FailedPreconditionError(
        absl::StrCat("device \"cuda\": no usable NVIDIA GPU or driver on this machine (",
                     cudaGetErrorName(error), ")"));
  }
  if (ordinal < 0 || ordinal >= count) {
    return absl::FailedPreconditionError(
        absl::StrCat("device \"cuda\": GPU ", ordinal, " was asked for, this machine has ", count));
  }
  RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal));
  cudaDeviceProp properties;
  RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, ordinal));
  DeviceInfo info = {
      .ordinal = ordinal,
      .name = properties.name,
      .major = properties.major,
      .minor = properties.minor,
      .multiprocessors = properties.multiProcessorCount,
      .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem),
      .l2_bytes = properties.l2CacheSize,
      .shared_bytes_max = static_cast<int64_t>(properties.sharedMemPerBlockOptin),
      .shared_bytes_sm = static_cast<int64_t>(properties.sharedMemPerMultiprocessor)};
  if (info.major < 8) {
    return absl::FailedPreconditionError(absl::StrCat("device \"cuda\": ", info.name,
                                                      " has compute capability ", info.major, ".",
                                                      info.minor, ", needed is 8.0"));
  }
  return info;
}

MemoryPool::~MemoryPool() { DropIdle(); }

absl::StatusOr<void*> MemoryPool::FromDriver(int64_t bytes) {
  void* data = nullptr;
  const size_t size = static_cast<size_t>(bytes);
  const cudaError_t error = kind_ == Kind::kDevice
                                ? cudaMalloc(&data, size)
                                : cudaHostAlloc(&data, size, cudaHostAllocDefault);
  if (error != cudaSuccess) {
    return CudaErrorStatus(error, absl::StrCat("allocation of ", bytes, " bytes"));
  }
  return data;
}

absl::StatusOr<void*> MemoryPool::Allocate(int64_t bytes) {
  const int64_t padded = PoolBytes(bytes);
  bool too_much_with_idle = false;
  {
    absl::MutexLock lock(&mutex_);
    if (const auto found = idle_.find(padded); found != idle_.end()) {
      void* data = found->second;
      idle_.erase(found);
      idle_bytes_ -= padded;
      used_ += padded;
      lent_.emplace(data, padded);
      return data;
    }
    if (padded > bytes_max_ - used_) {
      return absl::ResourceExhaustedError(absl::StrCat(kind_ == Kind::kDevice ? "device" : "pinned",
                                                       " memory: ", bytes, " bytes asked for, ",
                                                       used_, " of ", bytes_max_, " in use"));
    }
    used_ += padded;  // reserved while the driver is asked
    too_much_with_idle = used_ + idle_bytes_ > bytes_max_;
  }
  if (too_much_with_idle) DropIdle();
  absl::StatusOr<void*> data = FromDriver(padded);
  if (absl::IsResourceExhausted(data.status()) && DropIdle()) data = FromDriver(padded);
  absl::MutexLock lock(&mutex_);
  if (!data.ok()) {
    used_ -= padded;
    return data.status();
  }
  lent_.emplace(*data, padded);
  return *data;
}

void MemoryPool::Release(void* data) {
  if (data == nullptr) return;
  absl::MutexLock lock(&mutex_);
  const auto found = lent_.find(data);
  MNEME_CHECK(found != lent_.end());
  const int64_t bytes = found->second;
  lent_.erase(found);
  used_ -= bytes;
  idle_bytes_ += bytes;
  idle_.emplace(bytes, data);
}

int64_t MemoryPool::bytes_used() const {
  absl::MutexLock lock(&mutex_);
  return used_;
}

bool MemoryPool::DropIdle() {
  std::multimap<int64_t, void*> idle;
  {
    absl::MutexLock lock(&mutex_);
    idle.swap(idle_);
    idle_bytes_ = 0;
  }
  for (const auto& [bytes, data] : idle) GiveBack(kind_, data);
  return !idle.empty();
}

}  // namespace mneme
