// Memory of a backend, owned.

#ifndef MNEME_KERNELS_BUFFER_H_
#define MNEME_KERNELS_BUFFER_H_

#include <cstdint>
#include <utility>

namespace mneme {

// Move-only owner of one allocation of a backend, aligned to 64 bytes at least. What it holds at
// first is not defined. Must not outlive the backend. Thread-compatible.
class Buffer {
 public:
  using Release = void (*)(void* context, void* data);

  Buffer() = default;
  // Takes `data` over; `release(context, data)` gives it back.
  Buffer(void* data, int64_t bytes, Release release, void* context)
      : data_(data), bytes_(bytes), release_(release), context_(context) {}
  Buffer(Buffer&& other) noexcept { Swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Swap(other);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) release_(context_, data_);
  }

  void* data() const { return data_; }
  template <typename T>
  T* as(int64_t byte_offset = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + byte_offset);
  }
  int64_t bytes() const { return bytes_; }

 private:
  void Swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(release_, other.release_);
    std::swap(context_, other.context_);
  }

  void* data_ = nullptr;
  int64_t bytes_ = 0;
  Release release_ = nullptr;
  void* context_ = nullptr;
};

}  // namespace mneme

#endif  // MNEME_KERNELS_BUFFER_H_
