// The device tier of landmarks: copies of landmark blocks in the memory of a backend that has its
// own, made when a query first sees a block and kept as long as the block lives. Blocks that
// queries see never change, so a copy is never stale; a forgotten block takes its copy with it,
// overwritten.
// Blocks that find no room stay in host memory, where a scan streams them from.

#ifndef MNEME_MEMORY_STORE_DEVICE_LANDMARKS_H_
#define MNEME_MEMORY_STORE_DEVICE_LANDMARKS_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/metrics.h"
#include "kernels/backend.h"
#include "memory_store/landmark_list.h"

namespace mneme {

// Thread-safe. The backend must outlive this and every block that was seen here.
class DeviceLandmarks {
 public:
  DeviceLandmarks(Backend& backend, int64_t landmark_bytes, int64_t bytes_max, Metrics& metrics);

  // The snapshot's slabs, one a run, in order: on the device, but for those that found no room.
  struct Slabs {
    std::vector<LandmarkSlab> slabs;
    bool resident = true;  // all are on the device
  };
  Slabs Resident(const LandmarkSnapshot& snapshot);

  int64_t used_bytes() const { return used_bytes_->load(std::memory_order_relaxed); }
  int64_t limit_bytes() const { return bytes_max_; }

 private:
  // The block's copy, made if need be; null when there is no room.
  const uint8_t* CopyOf(const LandmarkBlock& block) ABSL_EXCLUSIVE_LOCKS_REQUIRED(upload_mutex_);

  Backend& backend_;
  const int64_t landmark_bytes_;
  const int64_t bytes_max_;
  Counter& streamed_bytes_;
  absl::Mutex upload_mutex_;  // one query at a time uploads
  // Shared with the copies, which may outlive this.
  const std::shared_ptr<std::atomic<int64_t>> used_bytes_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_DEVICE_LANDMARKS_H_
