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
  for (const auto& [key, repetition] : repetitions_) {
    if (repetition.graph != nullptr) static_cast<void>(cudaGraphExecDestroy(repetition.graph));
  }
  for (const Block& block : blocks_) device_memory_.Release(block.data);
  device_memory_.Release(counters_);
  pinned_memory_.Release(ring_);
  if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
}

absl::Status CudaStream::BeginOperation() {
  block_used_ = 0;
  if (blocks_.size() <= 1) return absl::OkStatus();
  // The operation before outgrew its memory: one block as large as all of them takes their place.
  // They may be in use until the device is done.
  RETURN_IF_ERROR(Synchronize());
  ++memory_generation_;
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
    RETURN_IF_ERROR(NotCapturing());
    ++memory_generation_;
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

absl::StatusOr<int*> CudaStream::Counters(int64_t count) {
  if (count <= counter_count_) return counters_;
  RETURN_IF_ERROR(Synchronize());
  ++memory_generation_;
  const int64_t bytes = RoundUpTo(count * static_cast<int64_t>(sizeof(int)), 4096);
  ASSIGN_OR_RETURN(void* const data, device_memory_.Allocate(bytes));
  device_memory_.Release(counters_);
  counters_ = static_cast<int*>(data);
  counter_count_ = bytes / static_cast<int64_t>(sizeof(int));
  RETURN_IF_CUDA_ERROR(cudaMemsetAsync(counters_, 0, static_cast<size_t>(bytes), stream_));
  return counters_;
}

absl::Status CudaStream::NotCapturing() const {
  return capturing_ ? absl::FailedPreconditionError("not in a captured graph") : absl::OkStatus();
}

CudaStream::Repetition& CudaStream::FindRepetition(absl::Span<const int64_t> key) {
  if (const auto found = repetitions_.find(key); found != repetitions_.end()) return found->second;
  if (static_cast<int64_t>(repetitions_.size()) >= kRepeatsMax) {
    const auto oldest = std::min_element(
        repetitions_.begin(), repetitions_.end(),
        [](const auto& a, const auto& b) { return a.second.last_use < b.second.last_use; });
    // What is under way of it goes on to its end.
    if (oldest->second.graph != nullptr) {
      static_cast<void>(cudaGraphExecDestroy(oldest->second.graph));
    }
    repetitions_.erase(oldest);
  }
  return repetitions_[std::vector<int64_t>(key.begin(), key.end())];
}

absl::StatusOr<cudaGraphExec_t> CudaStream::Capture(absl::FunctionRef<absl::Status()> fn) {
  RETURN_IF_CUDA_ERROR(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  capturing_ = true;
  const absl::Status status = fn();
  capturing_ = false;
  cudaGraph_t graph = nullptr;
  const cudaError_t error = cudaStreamEndCapture(stream_, &graph);
  cudaGraphExec_t executable = nullptr;
  const cudaError_t instantiated = status.ok() && error == cudaSuccess
                                       ? cudaGraphInstantiate(&executable, graph, 0)
                                       : cudaErrorStreamCaptureInvalidated;
  if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
  RETURN_IF_ERROR(status);
  RETURN_IF_CUDA_ERROR(error);
  RETURN_IF_CUDA_ERROR(instantiated);
  return executable;
}

absl::Status CudaStream::Repeat(absl::Span<const int64_t> key,
                                absl::FunctionRef<absl::Status()> fn) {
  if (capturing_) return fn();
  Repetition& repetition = FindRepetition(key);
  const bool first = repetition.last_use == 0;
  repetition.last_use = ++repeats_;
  if (first || repetition.runs_only) return fn();
  // Scratch memory that grew the last time finds its place before its addresses are captured.
  RETURN_IF_ERROR(BeginOperation());
  if (repetition.graph != nullptr && repetition.generation != memory_generation_) {
    static_cast<void>(cudaGraphExecDestroy(repetition.graph));
    repetition.graph = nullptr;
  }
  idle_ = false;  // also while it is captured: nothing in it waits
  if (repetition.graph == nullptr) {
    absl::StatusOr<cudaGraphExec_t> graph = Capture(fn);
    if (!graph.ok()) {
      static_cast<void>(cudaGetLastError());
      repetition.runs_only = true;
      return fn();
    }
    repetition.graph = *graph;
    repetition.generation = memory_generation_;
  }
  RETURN_IF_CUDA_ERROR(cudaGraphLaunch(repetition.graph, stream_));
  return absl::OkStatus();
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
  RETURN_IF_ERROR(NotCapturing());
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
  RETURN_IF_ERROR(NotCapturing());
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
  RETURN_IF_ERROR(NotCapturing());
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_));
  idle_ = true;
  return absl::OkStatus();
}

}  // namespace mneme
