// Shared by the GPU benches: checked CUDA calls, device memory, random numbers, timing with a cold
// L2 cache, and a table that also goes to a JSON file.

#ifndef MNEME_BENCH_GPU_GPU_MEASURE_H_
#define MNEME_BENCH_GPU_GPU_MEASURE_H_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace mneme::bench {

inline void Check(cudaError_t error, const char* what, int line) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "line %d: %s: %s\n", line, what, cudaGetErrorString(error));
  std::exit(1);
}
#define MNEME_CUDA(call) ::mneme::bench::Check((call), #call, __LINE__)

// Owned device memory.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t count) : count_(count) {
    MNEME_CUDA(cudaMalloc(&data_, static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(T)));
  }
  explicit DeviceArray(const std::vector<T>& host)
      : DeviceArray(static_cast<int64_t>(host.size())) {
    Set(host);
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  T* get() const { return data_; }
  int64_t count() const { return count_; }
  int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(T)); }
  void Set(const std::vector<T>& host) {
    MNEME_CUDA(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> Get() const {
    std::vector<T> host(static_cast<size_t>(count_));
    MNEME_CUDA(cudaMemcpy(host.data(), data_, host.size() * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }
  // Bytes that no kernel writes by chance; NaN as a float.
  void Poison() const { MNEME_CUDA(cudaMemset(data_, 0xff, static_cast<size_t>(bytes()))); }

 private:
  T* data_ = nullptr;
  int64_t count_;
};

struct Timing {
  double median_ms = 0, min_ms = 0, max_ms = 0;
  int repetitions = 0;
};

// Times work on one stream with events. Before each repetition the L2 cache is overwritten, so that
// inputs come from memory.
class Timer {
 public:
  explicit Timer(int repetitions) : repetitions_(repetitions), flush_(256 << 20) {
    MNEME_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    MNEME_CUDA(cudaEventCreate(&begin_));
    MNEME_CUDA(cudaEventCreate(&end_));
  }
  ~Timer() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    cudaStreamDestroy(stream_);
  }
  cudaStream_t stream() const { return stream_; }

  Timing Measure(const std::function<void()>& work) {
    for (int i = 0; i < 3; ++i) work();
    std::vector<double> ms;
    for (int i = 0; i < repetitions_; ++i) {
      MNEME_CUDA(cudaMemsetAsync(flush_.get(), i, static_cast<size_t>(flush_.bytes()), stream_));
      MNEME_CUDA(cudaEventRecord(begin_, stream_));
      work();
      MNEME_CUDA(cudaEventRecord(end_, stream_));
      MNEME_CUDA(cudaEventSynchronize(end_));
      float elapsed = 0;
      MNEME_CUDA(cudaEventElapsedTime(&elapsed, begin_, end_));
      ms.push_back(elapsed);
    }
    std::sort(ms.begin(), ms.end());
    return {ms[ms.size() / 2], ms.front(), ms.back(), repetitions_};
  }

 private:
  const int repetitions_;
  DeviceArray<unsigned char> flush_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

// What the device reaches: the bandwidth as measured, the matrix rate as told.
struct Roofline {
  double bytes_per_s = 0;
  double operations_per_s = 0;
};

// Bytes read plus bytes written by a large copy, per second.
inline double MeasureCopyBandwidth(Timer& timer) {
  DeviceArray<unsigned char> from(int64_t{1} << 30), to(int64_t{1} << 30);
  from.Poison();
  const Timing timing = timer.Measure([&] {
    MNEME_CUDA(cudaMemcpyAsync(to.get(), from.get(), static_cast<size_t>(from.bytes()),
                               cudaMemcpyDeviceToDevice, timer.stream()));
  });
  return 2.0 * static_cast<double>(from.bytes()) / (timing.median_ms * 1e-3);
}

// Rows of a result table. Bytes and operations are the fewest that the work needs.
class Report {
 public:
  explicit Report(const Roofline& roofline) : roofline_(roofline) {
    std::printf("%-58s %9s %9s %9s %9s %9s %9s %7s\n", "work", "median ms", "min", "max", "GB/s",
                "TFLOP/s", "floor ms", "share");
  }
  void Add(const std::string& name, const Timing& timing, double bytes, double operations) {
    const double floor_ms =
        1e3 * std::max(bytes / roofline_.bytes_per_s, operations / roofline_.operations_per_s);
    const double seconds = timing.median_ms * 1e-3;
    std::printf("%-58s %9.4f %9.4f %9.4f %9.1f %9.2f %9.4f %6.1f%%\n", name.c_str(),
                timing.median_ms, timing.min_ms, timing.max_ms, bytes / seconds / 1e9,
                operations / seconds / 1e12, floor_ms, 100 * floor_ms / timing.median_ms);
    std::fflush(stdout);
    char line[640];
    std::snprintf(line, sizeof(line),
                  "    {\"name\": \"%s\", \"median_ms\": %.5f, \"min_ms\": %.5f, \"max_ms\": %.5f, "
                  "\"repetitions\": %d, \"bytes\": %.0f, \"operations\": %.0f, \"floor_ms\": %.5f, "
                  "\"share_of_floor\": %.4f}",
                  name.c_str(), timing.median_ms, timing.min_ms, timing.max_ms, timing.repetitions,
                  bytes, operations, floor_ms, floor_ms / timing.median_ms);
    rows_.push_back(line);
  }
  // False when the file cannot be written.
  bool Write(const std::string& path, const std::string& device, const std::string& commit,
             const std::string& command) const {
    std::FILE* file = std::fopen(path.c_str(), "w");
    if (file == nullptr) return false;
    std::fprintf(file,
                 "{\n  \"device\": \"%s\",\n  \"commit\": \"%s\",\n  \"command\": \"%s\",\n"
                 "  \"copy_bytes_per_s\": %.4e,\n  \"assumed_operations_per_s\": %.4e,\n"
                 "  \"results\": [\n",
                 device.c_str(), commit.c_str(), command.c_str(), roofline_.bytes_per_s,
                 roofline_.operations_per_s);
    for (size_t i = 0; i < rows_.size(); ++i) {
      std::fprintf(file, "%s%s\n", rows_[i].c_str(), i + 1 < rows_.size() ? "," : "");
    }
    std::fprintf(file, "  ]\n}\n");
    return std::fclose(file) == 0;
  }

 private:
  const Roofline roofline_;
  std::vector<std::string> rows_;
};

// A number in [0, 2^32) that depends on seed and index alone.
__host__ __device__ inline uint32_t Hash(uint64_t seed, uint64_t index) {
  uint64_t x = seed * 0x9e3779b97f4a7c15u + index;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return static_cast<uint32_t>((x ^ (x >> 31)) >> 16);
}

// About normal, variance 1: the sum of four uniforms.
__host__ __device__ inline float Normal(uint64_t seed, uint64_t index) {
  float sum = 0;
  for (int i = 0; i < 4; ++i) {
    sum +=
        static_cast<float>(Hash(seed + static_cast<uint64_t>(i), index)) * (1.0f / 4294967296.0f);
  }
  return (sum - 2.0f) * 1.7320508f;
}

}  // namespace mneme::bench

#endif  // MNEME_BENCH_GPU_GPU_MEASURE_H_
