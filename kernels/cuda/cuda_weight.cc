#include "kernels/cuda/cuda_weight.h"

#include <cstring>
#include <vector>

#include "common/status_macros.h"
#include "kernels/cuda/gemm.h"

namespace mneme {
namespace {

// Rows and columns of a form: whole 16-byte vectors of int8, whole pairs of tensor core tiles.
constexpr int64_t kUnit = 16;

// One stored row as the compute dtype, integers without their scale.
void ConvertRow(const WeightSource& part, int64_t row, DType dtype, uint8_t* to) {
  const int64_t first = row * part.cols;
  for (int64_t i = 0; i < part.cols; ++i) {
    float value = 0;
    switch (part.dtype) {
      case DType::kI8:
        value = static_cast<const int8_t*>(part.data)[first + i];
        break;
      case DType::kBf16: {
        Bf16 half;
        std::memcpy(&half, static_cast<const uint8_t*>(part.data) + (first + i) * 2, 2);
        value = Bf16ToFloat(half);
        break;
      }
      default:
        std::memcpy(&value, static_cast<const uint8_t*>(part.data) + (first + i) * 4, 4);
    }
    if (dtype == DType::kBf16) {
      const Bf16 half = FloatToBf16(value);
      std::memcpy(to + i * 2, &half, 2);
    } else {
      std::memcpy(to + i * 4, &value, 4);
    }
  }
}

}  // namespace

CudaWeight::CudaWeight(int64_t rows, int64_t cols, DType stored_dtype, const PackOptions& options,
                       const CublasLt* cublas_lt, MemoryPool& memory, const DeviceInfo& device)
    : PackedWeight(rows, cols, RoundUpTo(rows, kUnit), options.compute_dtype, options.swiglu),
      stored_dtype_(stored_dtype),
      stride_(RoundUpTo(cols, kUnit)),
      int8_products_(stored_dtype == DType::kI8 && Int8RowProductFits(cols, device)),
      cublas_lt_(cublas_lt),
      memory_(memory) {}

CudaWeight::~CudaWeight() {
  if (dense_ != stored_) memory_.Release(dense_);
  memory_.Release(stored_);
  memory_.Release(scale_);
}

absl::StatusOr<std::unique_ptr<CudaWeight>> CudaWeight::Pack(absl::Span<const WeightSource> parts,
                                                             const PackOptions& options,
                                                             const CublasLt* cublas_lt,
                                                             MemoryPool& memory,
                                                             CudaStream& stream) {
  int64_t rows = 0;
  for (const WeightSource& part : parts) rows += part.rows;
  std::unique_ptr<CudaWeight> weight(new CudaWeight(rows, parts[0].cols, parts[0].dtype, options,
                                                    cublas_lt, memory, stream.device()));
  RETURN_IF_ERROR(weight->Fill(parts, stream));
  // The weight may serve any thread from here on.
  RETURN_IF_ERROR(stream.Synchronize());
  if (cublas_lt != nullptr && !options.swiglu) {
    weight->plan_ = cublas_lt->Plan({.dtype = weight->compute_dtype(),
                                     .weight_stride = weight->stride_,
                                     .n = weight->out_columns(),
                                     .k = weight->product_k(),
                                     .scale = weight->scale_});
  }
  return weight;
}

absl::Status CudaWeight::Fill(absl::Span<const WeightSource> parts, CudaStream& stream) {
  const int64_t elements = out_columns() * stride_;
  const int64_t stored_bytes = DTypeBytes(stored_dtype_), dense_bytes = DTypeBytes(compute_dtype());
  ASSIGN_OR_RETURN(stored_, memory_.Allocate(elements * stored_bytes));
  dense_ = stored_;
  if (stored_dtype_ != compute_dtype()) {
    dense_ = nullptr;
    ASSIGN_OR_RETURN(dense_, memory_.Allocate(elements * dense_bytes));
  }
  std::vector<uint8_t> stored(elements * stored_bytes, 0);
  std::vector<uint8_t> dense(dense_ == stored_ ? 0 : elements * dense_bytes, 0);
  std::vector<float> scale(stored_dtype_ == DType::kI8 ? out_columns() : 0, 0.0f);
  int64_t first = 0;
  for (const WeightSource& part : parts) {
    const int64_t row_bytes = cols() * stored_bytes, half = part.rows / 2;
    for (int64_t r = 0; r < part.rows; ++r) {
      const int64_t row = swiglu() ? r % half / 8 * 16 + r / half * 8 + r % half % 8 : first + r;
      std::memcpy(stored.data() + row * stride_ * stored_bytes,
                  static_cast<const uint8_t*>(part.data) + r * row_bytes,
                  static_cast<size_t>(row_bytes));
      if (!dense.empty()) {
        ConvertRow(part, r, compute_dtype(), dense.data() + row * stride_ * dense_bytes);
      }
      if (!scale.empty()) {
        std::memcpy(&scale[row], reinterpret_cast<const uint8_t*>(part.scale) + r * 4, 4);
      }
    }
    first += part.rows;
  }
  RETURN_IF_ERROR(stream.CopyIn(stored_, stored.data(), static_cast<int64_t>(stored.size())));
  RETURN_IF_ERROR(stream.CopyIn(dense_, dense.data(), static_cast<int64_t>(dense.size())));
  if (scale.empty()) return absl::OkStatus();
  const int64_t scale_bytes = static_cast<int64_t>(scale.size() * sizeof(float));
  ASSIGN_OR_RETURN(void* scale_memory, memory_.Allocate(scale_bytes));
  scale_ = static_cast<float*>(scale_memory);
  return stream.CopyIn(scale_, scale.data(), scale_bytes);
}

absl::Status CudaWeight::EmbedRows(const EmbedParams& p, CudaStream& stream) const {
  return LaunchGather({.ids = p.ids,
                       .rows = p.rows,
                       .weight_dtype = stored_dtype_,
                       .weight = stored_,
                       .weight_stride = stride_,
                       .n = rows(),
                       .k = cols(),
                       .scale = scale_,
                       .out = p.out,
                       .out_stride = p.out_stride,
                       .next = p.next},
                      stream);
}

absl::Status CudaWeight::Matmul(const MatmulParams& p, CudaStream& stream) const {
  if (!p.per_row) return ManyRows(p, stream);
  const RowProductParams product = {.a = static_cast<const float*>(p.a),
                                    .a_stride = p.a_stride,
                                    .rows = p.rows,
                                    .weight_dtype = stored_dtype_,
                                    .weight = stored_,
                                    .weight_stride = stride_,
                                    .n = rows(),
                                    .k = cols(),
                                    .scale = scale_,
                                    .out = static_cast<float*>(p.out),
                                    .out_stride = out_columns(),
                                    .accumulate = p.accumulate,
                                    .norm_weight = p.norm.weight,
                                    .norm_eps = p.norm.eps,
                                    .gate = static_cast<const float*>(p.norm.gate),
                                    .gate_stride = p.norm.gate_stride};
  return int8_products_ ? LaunchInt8RowProduct(product, stream) : LaunchRowProduct(product, stream);
}

absl::Status CudaWeight::ManyRows(const MatmulParams& p, CudaStream& stream) const {
  if (p.rows == 0) return absl::OkStatus();
  GemmParams gemm = {.dtype = compute_dtype(),
                     .a = p.a,
                     .a_stride = p.a_stride,
                     .rows = p.rows,
                     .weight = dense_,
                     .weight_stride = stride_,
                     .n = out_columns(),
                     .k = product_k(),
                     .scale = scale_,
                     .out = p.out,
                     .out_dtype = p.out_dtype,
                     .accumulate = p.accumulate,
                     .tail = p.tail,
                     .tail_begin = rows() - p.tail_columns,
                     .tail_outputs = p.tail_columns,
                     .tail_stride = p.tail_stride,
                     .swiglu = p.swiglu,
                     .next = p.next};
  if (p.norm.squares != nullptr) {
    ASSIGN_OR_RETURN(float* const factors, stream.ScratchOf<float>(p.rows));
    RETURN_IF_ERROR(LaunchRowFactors({.squares = p.norm.squares,
                                      .parts = p.norm.square_parts,
                                      .stride = p.norm.squares_stride,
                                      .rows = p.rows,
                                      .norm_width = cols(),
                                      .eps = p.norm.eps,
                                      .factors = factors},
                                     stream));
    gemm.factor = factors;
  }
  const int bytes = DTypeBytes(compute_dtype());
  if (reinterpret_cast<uintptr_t>(p.a) % 16 != 0 || p.a_stride * bytes % 16 != 0 ||
      product_k() != cols()) {
    ASSIGN_OR_RETURN(void* aligned, stream.Scratch(p.rows * stride_ * bytes));
    RETURN_IF_ERROR(
        LaunchCopyRows(p.a, p.a_stride, cols(), aligned, stride_, p.rows, bytes, stream));
    gemm.a = aligned;
    gemm.a_stride = stride_;
  }
  if (plan_ != nullptr && p.out_dtype == DType::kF32 && p.norm.squares == nullptr &&
      p.next.weight == nullptr && reinterpret_cast<uintptr_t>(p.out) % 16 == 0) {
    absl::Status status = cublas_lt_->Multiply(*plan_, gemm, stream);
    if (!absl::IsUnimplemented(status)) return status;
  }
  return LaunchGemm(gemm, stream);
}

}  // namespace mneme
