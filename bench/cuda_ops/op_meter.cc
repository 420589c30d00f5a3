#include "bench/cuda_ops/op_meter.h"

#include <algorithm>
#include <cstdio>
#include <utility>

namespace mneme::bench {

OpMeter::OpMeter(Backend& backend) : backend_(backend), sync_(OrDie(backend.Allocate(4))) {
  std::normal_distribution<float> normal;
  noise_.resize(1 << 20);
  for (float& v : noise_) v = normal(random_);
}

Buffer OpMeter::Floats(int64_t count) const {
  Buffer buffer = OrDie(backend_.Allocate(count * 4));
  for (int64_t at = 0; at < count; at += static_cast<int64_t>(noise_.size())) {
    const int64_t part = std::min<int64_t>(count - at, static_cast<int64_t>(noise_.size()));
    OrDie(backend_.CopyIn(buffer.as<float>(at * 4), noise_.data(), part * 4));
  }
  return buffer;
}

Buffer OpMeter::Halves(int64_t count) const {
  std::vector<Bf16> halves;
  for (float v : noise_) halves.push_back(FloatToBf16(v));
  Buffer buffer = OrDie(backend_.Allocate(count * 2));
  for (int64_t at = 0; at < count; at += static_cast<int64_t>(halves.size())) {
    const int64_t part = std::min<int64_t>(count - at, static_cast<int64_t>(halves.size()));
    OrDie(backend_.CopyIn(buffer.as<Bf16>(at * 2), halves.data(), part * 2));
  }
  return buffer;
}

std::unique_ptr<PackedWeight> OpMeter::Weight(int64_t rows, int64_t cols, bool embed, bool swiglu) {
  std::vector<int8_t> values(rows * cols);
  for (int8_t& v : values) v = static_cast<int8_t>(random_() % 255 - 127);
  const std::vector<float> scale(rows, 0.01f);
  return OrDie(
      backend_.PackWeight({{.dtype = DType::kI8,
                            .rows = rows,
                            .cols = cols,
                            .data = values.data(),
                            .scale = scale.data()}},
                          {.compute_dtype = DType::kBf16, .embed = embed, .swiglu = swiglu}));
}

void OpMeter::PrintHead() {
  MeasureCeilings();
  std::printf("%-34s %10s %8s %8s %9s %9s %7s\n", "operation", "median us", "min", "max", "GB/s",
              "TFLOP/s", "floor");
}

Spread OpMeter::Measure(const Work& work) const {
  char sink[4];
  const auto run = [&](int64_t count) {
    return Seconds([&] {
      for (int64_t i = 0; i < count; ++i) OrDie(work());
      OrDie(backend_.CopyOut(sink, sync_.data(), 4));
    });
  };
  run(3);
  const double once = run(10) / 10;
  const int64_t count = std::max<int64_t>(3, static_cast<int64_t>(kSecondsPerRepetition / once));
  std::vector<double> seconds;
  for (int i = 0; i < kRepetitions; ++i) seconds.push_back(run(count) / static_cast<double>(count));
  return SpreadOf(std::move(seconds));
}

double OpMeter::FloorSeconds(double bytes, double ops) const {
  return std::max(bytes / bytes_per_second_, ops / ops_per_second_);
}

void OpMeter::Print(const std::string& name, const Spread& seconds, double bytes,
                    double ops) const {
  const Spread& s = seconds;
  std::printf("%-34s %10.2f %8.2f %8.2f %9.0f %9.1f %6.1f%%\n", name.c_str(), s.median * 1e6,
              s.min * 1e6, s.max * 1e6, bytes / s.median / 1e9, ops / s.median / 1e12,
              100 * FloorSeconds(bytes, ops) / s.median);
  std::fflush(stdout);
}

void OpMeter::Line(const std::string& name, double bytes, double ops, const Work& work) const {
  Print(name, Measure(work), bytes, ops);
}

void OpMeter::MeasureCeilings() {
  const int64_t bytes = int64_t{1} << 30;
  const Buffer from = Floats(bytes / 4), to = OrDie(backend_.Allocate(bytes));
  const double copy = Measure([&] { return backend_.Copy(to.data(), from.data(), bytes); }).median;
  bytes_per_second_ = 2.0 * static_cast<double>(bytes) / copy;
  const int64_t n = 8192;
  const Buffer a = Halves(n * n), out = OrDie(backend_.Allocate(n * n * 4));
  std::vector<Bf16> random(n * n);
  for (Bf16& v : random) v = FloatToBf16(noise_[random_() % noise_.size()]);
  const auto weight = OrDie(
      backend_.PackWeight({{.dtype = DType::kBf16, .rows = n, .cols = n, .data = random.data()}},
                          {.compute_dtype = DType::kBf16}));
  const double product = Measure([&] {
                           return backend_.Matmul({.a = a.data(),
                                                   .a_dtype = DType::kBf16,
                                                   .a_stride = n,
                                                   .rows = n,
                                                   .weight = weight.get(),
                                                   .out = out.as<float>()});
                         }).median;
  ops_per_second_ = 2.0 * static_cast<double>(n) * static_cast<double>(n * n) / product;
  std::printf("copy %.3f TB/s read and written; bf16 product of %lld cubed %.0f TFLOP/s\n\n",
              bytes_per_second_ / 1e12, static_cast<long long>(n), ops_per_second_ / 1e12);
}

}  // namespace mneme::bench
