// What the parts of cuda_ops_bench share: operands with random values in a backend's memory, the
// time of a call, and a table of times beside what the same device reaches, in the same run, on a
// plain copy and on a large product of bf16 matrices.

#ifndef MNEME_BENCH_CUDA_OPS_OP_METER_H_
#define MNEME_BENCH_CUDA_OPS_OP_METER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/measure.h"
#include "bench/or_die.h"
#include "kernels/backend.h"

namespace mneme::bench {

inline constexpr int kRepetitions = 21;
inline constexpr double kSecondsPerRepetition = 0.004;

// Belongs to one thread. What fails ends the program.
class OpMeter {
 public:
  using Work = std::function<absl::Status()>;

  // `backend` outlives it.
  explicit OpMeter(Backend& backend);

  Backend& backend() const { return backend_; }
  std::mt19937& random() { return random_; }

  // [count] values, about normal.
  Buffer Floats(int64_t count) const;
  Buffer Halves(int64_t count) const;
  // An int8 weight for bf16 products, [rows, cols].
  std::unique_ptr<PackedWeight> Weight(int64_t rows, int64_t cols, bool embed = false,
                                       bool swiglu = false);

  // Measures what the device reaches and prints it, and the table's head.
  void PrintHead();
  // Seconds of one call among many that are queued back to back.
  Spread Measure(const Work& work) const;
  // The fewest seconds that the device could need. `bytes`: each input read once and each output
  // written once. `ops`: multiplications and additions.
  double FloorSeconds(double bytes, double ops) const;
  // A line of the table; `seconds` of what moves `bytes` and does `ops`.
  void Print(const std::string& name, const Spread& seconds, double bytes, double ops) const;
  // Measures and prints.
  void Line(const std::string& name, double bytes, double ops, const Work& work) const;

 private:
  void MeasureCeilings();

  Backend& backend_;
  std::mt19937 random_{7};
  std::vector<float> noise_;
  const Buffer sync_;
  double bytes_per_second_ = 1, ops_per_second_ = 1;
};

}  // namespace mneme::bench

#endif  // MNEME_BENCH_CUDA_OPS_OP_METER_H_
