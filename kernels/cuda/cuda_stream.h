// A queue of work for the device, with the memory that operations need on their way.

#ifndef MNEME_KERNELS_CUDA_CUDA_STREAM_H_
#define MNEME_KERNELS_CUDA_CUDA_STREAM_H_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/device.h"

namespace mneme {

// A CUDA stream, scratch memory on the device that grows to the largest need and then stays, and a
// ring of pinned memory through which host bytes go up. Owned by one thread at a time; must not
// outlive the pools.
class CudaStream {
 public:
  static absl::StatusOr<std::unique_ptr<CudaStream>> Create(const DeviceInfo& device,
                                                            MemoryPool& device_memory,
                                                            MemoryPool& pinned_memory);
  ~CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  cudaStream_t get() const { return stream_; }
  const DeviceInfo& device() const { return device_; }
  // Whether a kernel may start before the one before it on the stream is done (LaunchOverlapping).
  bool kernels_overlap() const { return device_.major >= 9; }

  // Starts an operation: scratch of the one before may be handed out again (in the order of the
  // stream, so nothing is waited for).
  absl::Status BeginOperation();
  // Device memory for the present operation, aligned to 256 bytes, not initialized; it is given
  // back by the next BeginOperation. Any number of calls in one operation. Null for 0 bytes.
  // RESOURCE_EXHAUSTED beyond the pool's limit.
  absl::StatusOr<void*> Scratch(int64_t bytes);
  template <typename T>
  absl::StatusOr<T*> ScratchOf(int64_t count) {
    absl::StatusOr<void*> data = Scratch(count * static_cast<int64_t>(sizeof(T)));
    if (!data.ok()) return data.status();
    return static_cast<T*>(*data);
  }
  // Scratch that holds a copy of host bytes (a table that a kernel reads). `host` has been read
  // when this returns.
  absl::StatusOr<void*> Upload(const void* host, int64_t bytes);
  template <typename T>
  absl::StatusOr<const T*> UploadOf(const T* host, int64_t count) {
    absl::StatusOr<void*> data = Upload(host, count * static_cast<int64_t>(sizeof(T)));
    if (!data.ok()) return data.status();
    return static_cast<const T*>(*data);
  }

  // Device memory of zeros that kernels leave as zeros; the same at each call with no larger count.
  absl::StatusOr<int*> Counters(int64_t count);

  // Backend::Repeat for the thread that has the stream: runs `fn` the first time that a key comes,
  // captures what it queues the second time, and queues that from then on. What reads host memory,
  // waits or needs more scratch memory answers FAILED_PRECONDITION while `fn` is captured, and `fn`
  // then simply runs.
  absl::Status Repeat(absl::Span<const int64_t> key, absl::FunctionRef<absl::Status()> fn);

  // Queues a copy of host memory to the device; `host` has been read when this returns.
  absl::Status CopyIn(void* to, const void* host, int64_t bytes);
  // Copies to host memory and waits for it, and so for all work queued before.
  absl::Status CopyOut(void* host, const void* from, int64_t bytes);
  // Waits for all work queued.
  absl::Status Synchronize();
  // Nothing was queued since the last Synchronize or CopyOut.
  bool idle() const { return idle_; }
  // Work was queued by other means than this class's.
  void NoteWork() { idle_ = false; }

 private:
  static constexpr int kSegments = 4;
  static constexpr int64_t kSegmentBytes = 512 * 1024;

  // Keys that are remembered; the one that was not asked for longest gives way. Enough for two
  // halves of a step of any number of readers up to 256: with fewer, numbers that vary from step to
  // step would be captured again and again.
  static constexpr int64_t kRepeatsMax = 640;

  struct Block {
    char* data = nullptr;
    int64_t bytes = 0;
  };
  struct Repetition {
    cudaGraphExec_t graph = nullptr;  // null: not captured yet
    int64_t generation = 0;           // of memory_generation_, when it was captured
    bool runs_only = false;           // could not be captured
    int64_t last_use = 0;             // 0: never
  };
  // Orders keys; a span finds its key without a copy.
  struct KeyLess {
    using is_transparent = void;
    bool operator()(absl::Span<const int64_t> a, absl::Span<const int64_t> b) const {
      return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
    }
  };

  CudaStream(const DeviceInfo& device, MemoryPool& device_memory, MemoryPool& pinned_memory)
      : device_(device), device_memory_(device_memory), pinned_memory_(pinned_memory) {}

  // Makes the ring's present segment have room for at least one byte, waiting for the device to be
  // done with it.
  absl::Status NextSegment();

  // OK, but FAILED_PRECONDITION while a graph is captured.
  absl::Status NotCapturing() const;
  Repetition& FindRepetition(absl::Span<const int64_t> key);
  absl::StatusOr<cudaGraphExec_t> Capture(absl::FunctionRef<absl::Status()> fn);

  const DeviceInfo device_;
  MemoryPool& device_memory_;
  MemoryPool& pinned_memory_;
  cudaStream_t stream_ = nullptr;
  bool idle_ = true;

  std::vector<Block> blocks_;  // the last one is the one handed out of
  int64_t block_used_ = 0;
  int* counters_ = nullptr;
  int64_t counter_count_ = 0;
  int64_t memory_generation_ = 0;  // counts the moves of scratch memory and counters

  std::map<std::vector<int64_t>, Repetition, KeyLess> repetitions_;
  int64_t repeats_ = 0;
  bool capturing_ = false;

  char* ring_ = nullptr;
  cudaEvent_t segment_done_[kSegments] = {};
  int segment_ = 0;
  int64_t segment_used_ = 0;
};

}  // namespace mneme

#endif  // MNEME_KERNELS_CUDA_CUDA_STREAM_H_
