#include "kernels/cuda/cuda_stream.h"

#include <algorithm>
#include <cstring>

#include "common/status_macros.h"

namespace mneme {
namespace {

constexpr int64_t kFirstBlockBytes = 1 << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<CudaStream>> CudaStream::Create(const DeviceInfo& device,
                                                               MemoryPool& device_memory,
                                                               MemoryPool& pinned_memory) {
  std::unique_ptr<CudaStream> stream(new CudaStream(device, device_memory, pinned_memory));
  RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream->stream_, cudaStreamNonBlocking));
  for (cudaEvent_t& event : stream->segment_done_) {
    RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  }
  // The extra segment is the way back (CopyOut).
  ASSIGN_OR_RETURN(void* ring, pinned_memory.Allocate((kSegments + 1) * kSegmentBytes));
  stream->ring_ = static_cast<char*>(ring);
  return stream;
}

CudaStream::~CudaStream() {
  if (stream_ != nullptr) static_cast<void>(cudaStreamSynchronize(stream_));
  for (cudaEvent_t event : segment_done_) {
    if (event != nullptr) static_cast<void>(cudaEventDestroy(event));
  }
  for (const Block& block : blocks_) device_memory_.Release(block.data);
  pinned_memory_.Release(ring_);
  if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
}

absl::Status CudaStream::BeginOperation() {
  block_used_ = 0;
  if (blocks_.size() <= 1) return absl::OkStatus();
  // The operation before outgrew its memory: one block as large as all of them takes their place.
  // They may be in use until the device is done.
  RETURN_IF_ERROR(Synchronize());
  int64_t bytes = 0;
  for (const Block& block : blocks_) bytes += block.bytes;
  for (const Block& block : blocks_) device_memory_.Release(block.data);
  blocks_.clear();
  ASSIGN_OR_RETURN(void* data, device_memory_.Allocate(bytes));
  blocks_.push_back({static_cast<char*>(data), bytes});
  return absl::OkStatus();
}

absl::StatusOr<void*> CudaStream::Scratch(int64_t bytes) {
  if (bytes == 0) return static_cast<void*>(nullptr);
  bytes = RoundUpTo(bytes, 256);
  if (blocks_.empty() || blocks_.back().bytes - block_used_ < bytes) {
    const int64_t block_bytes = std::max(bytes, kFirstBlockBytes);
    ASSIGN_OR_RETURN(void* data, device_memory_.Allocate(block_bytes));
    blocks_.push_back({static_cast<char*>(data), block_bytes});
    block_used_ = 0;
  }
  void* data = blocks_.back().data + block_used_;
  block_used_ += bytes;
  return data;
}

absl::StatusOr<void*> CudaStream::Upload(const void* host, int64_t bytes) {
  ASSIGN_OR_RETURN(void* data, Scratch(bytes));
  RETURN_IF_ERROR(CopyIn(data, host, bytes));
  return data;
}

absl::Status CudaStream::NextSegment() {
  if (segment_used_ < kSegmentBytes) return absl::OkStatus();
  RETURN_IF_CUDA_ERROR(cudaEventRecord(segment_done_[segment_], stream_));
  segment_ = (segment_ + 1) % kSegments;
  segment_used_ = 0;
  // An event that was never recorded is done.
  RETURN_IF_CUDA_ERROR(cudaEventSynchronize(segment_done_[segment_]));
  return absl::OkStatus();
}

absl::Status CudaStream::CopyIn(void* to, const void* host, int64_t bytes) {
  const char* from = static_cast<const char*>(host);
  char* next = static_cast<char*>(to);
  idle_ = false;
  while (bytes > 0) {
    RETURN_IF_ERROR(NextSegment());
    const int64_t part = std::min(bytes, kSegmentBytes - segment_used_);
    char* staged = ring_ + segment_ * kSegmentBytes + segment_used_;
    std::memcpy(staged, from, static_cast<size_t>(part));
    RETURN_IF_CUDA_ERROR(
        cudaMemcpyAsync(next, staged, static_cast<size_t>(part), cudaMemcpyHostToDevice, stream_));
    // The next piece begins at a whole cache line.
    segment_used_ = std::min(kSegmentBytes, RoundUpTo(segment_used_ + part, 64));
    from += part;
    next += part;
    bytes -= part;
  }
  return absl::OkStatus();
}

absl::Status CudaStream::CopyOut(void* host, const void* from, int64_t bytes) {
  if (bytes == 0) return Synchronize();
  if (bytes > kSegmentBytes) {
    idle_ = false;
    RETURN_IF_CUDA_ERROR(
        cudaMemcpyAsync(host, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_));
    return Synchronize();
  }
  char* bounce = ring_ + kSegments * kSegmentBytes;
  idle_ = false;
  RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(bounce, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_));
  RETURN_IF_ERROR(Synchronize());
  std::memcpy(host, bounce, static_cast<size_t>(bytes));
  return absl::OkStatus();
}

absl::Status CudaStream::Synchronize() {
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_));
  idle_ = true;
  return absl::OkStatus();
}

}  // namespace mneme
