#include "memory_store/device_landmarks.h"

#include <utility>

namespace mneme {

DeviceLandmarks::DeviceLandmarks(Backend& backend, int64_t landmark_bytes, int64_t bytes_max,
                                 Metrics& metrics)
    : backend_(backend),
      landmark_bytes_(landmark_bytes),
      bytes_max_(bytes_max),
      streamed_bytes_(metrics.AddCounter(
          "device_landmark_streamed_bytes_total",
          "Landmarks that queries read from host memory, for want of room on the device.")),
      used_bytes_(std::make_shared<std::atomic<int64_t>>(0)) {}

DeviceLandmarks::Slabs DeviceLandmarks::Resident(const LandmarkSnapshot& snapshot) {
  Slabs result;
  result.slabs.reserve(snapshot.slabs.size());
  int64_t streamed_rows = 0;
  absl::MutexLock lock(&upload_mutex_);
  for (size_t i = 0; i < snapshot.slabs.size(); ++i) {
    const LandmarkSlab& slab = snapshot.slabs[i];
    const LandmarkBlock& block = *snapshot.runs[i].block;
    const uint8_t* const copy = CopyOf(block);
    if (copy == nullptr) {
      result.slabs.push_back(slab);
      result.resident = false;
      streamed_rows += slab.row_count;
      continue;
    }
    const int64_t offset = static_cast<const uint8_t*>(slab.rows) - block.rows.data();
    result.slabs.push_back({copy + offset, slab.row_count});
  }
  if (streamed_rows > 0) {
    streamed_bytes_.Increment(static_cast<double>(streamed_rows * landmark_bytes_));
  }
  return result;
}

const uint8_t* DeviceLandmarks::CopyOf(const LandmarkBlock& block) {
  if (block.device_copy.rows != nullptr) return block.device_copy.rows->as<uint8_t>();
  const int64_t bytes = block.row_count() * landmark_bytes_;
  if (used_bytes() + bytes > bytes_max_) return nullptr;
  absl::StatusOr<Buffer> memory = backend_.Allocate(bytes);
  if (!memory.ok() || !backend_.CopyIn(memory->data(), block.rows.data(), bytes).ok()) {
    return nullptr;
  }
  used_bytes_->fetch_add(bytes, std::memory_order_relaxed);
  block.device_copy.rows = std::shared_ptr<const Buffer>(
      new Buffer(*std::move(memory)),
      [&backend = backend_, used = used_bytes_, bytes](const Buffer* buffer) {
        // What is forgotten must not lie about. A device that fails here is lost with what it
        // holds.
        backend.Zero(buffer->data(), bytes).IgnoreError();
        used->fetch_sub(bytes, std::memory_order_relaxed);
        delete buffer;
      });
  return block.device_copy.rows->as<uint8_t>();
}

}  // namespace mneme
