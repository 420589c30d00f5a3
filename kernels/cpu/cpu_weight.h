// Weight matrices of the CPU backend, and the products with them.
//
// A matrix is kept in up to three forms: blocked by oneDNN for many rows, in lanes
// (vector_kernels.h) for few, and row-major for Embed. int8 values are exact in bf16 and in f32, so
// the blocked form holds the integers where operands are bf16, and the scale of each output is
// applied to the f32 sum: no form rounds an int8 weight.

#ifndef MNEME_KERNELS_CPU_CPU_WEIGHT_H_
#define MNEME_KERNELS_CPU_CPU_WEIGHT_H_

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/vector_kernels.h"
#include "kernels/ops.h"
#include "kernels/packed_weight.h"

namespace mneme {

// Thread-safe.
class CpuWeight : public PackedWeight {
 public:
  // Parts are checked already (Backend::PackWeight). INTERNAL when oneDNN refuses.
  static absl::StatusOr<std::unique_ptr<CpuWeight>> Pack(absl::Span<const WeightSource> parts,
                                                         const PackOptions& options);
  ~CpuWeight() override;

  // out[r] = row ids[r], for rows [row_begin, row_end) of the params. Needs PackOptions::embed.
  void EmbedRows(const EmbedParams& params, int64_t row_begin, int64_t row_end) const;
  // Many rows, through oneDNN, cut into blocks of rows. The result of a row does not depend on the
  // other rows.
  absl::Status Matmul(ThreadPool& pool, const MatmulParams& params) const;
  // Few rows. `bytes_allowed`: int8 weights may be multiplied by activations rounded to 16 bits.
  void LaneMatmul(ThreadPool& pool, const VectorKernels& kernels, const MatmulParams& params,
                  bool bytes_allowed) const;

 private:
  struct Blocked;  // oneDNN's side

  CpuWeight(absl::Span<const WeightSource> parts, const PackOptions& options, int64_t rows);
  // Rows [begin, begin + rows) of a product, at most one block. Throws dnnl::error.
  void MultiplyBlock(const MatmulParams& params, int64_t begin, int64_t rows) const;
  void FillLanes(absl::Span<const WeightSource> parts);
  void FillRows(absl::Span<const WeightSource> parts);

  DType stored_dtype_;
  LaneWeight lanes_;
  std::vector<uint8_t> lane_data_;
  std::vector<float> scale_;       // [rows rounded up], kI8 only
  std::vector<int32_t> row_sum_;   // [rows rounded up], kI8 only
  std::vector<uint8_t> row_data_;  // row-major as stored, if packed for Embed
  std::unique_ptr<Blocked> blocked_;
};

}  // namespace mneme

#endif  // MNEME_KERNELS_CPU_CPU_WEIGHT_H_
