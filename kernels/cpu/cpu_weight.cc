#include "kernels/cpu/cpu_weight.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include <omp.h>
#include <oneapi/dnnl/dnnl.hpp>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cpu/scratch.h"

namespace mneme {
namespace {

constexpr int64_t kLanes = 16;
// Outputs of oneDNN's blocked form are padded to whole blocks; its fast path wants products without
// gaps.
constexpr int64_t kColumnBlock = 64;
// Rows of one oneDNN call: a multiple of the tile height, few enough that operands and product stay
// in the second cache.
constexpr int64_t kRowUnit = 16;
constexpr int64_t kRowBlock = 128;

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

float StoredValue(const WeightSource& part, int64_t row, int64_t col) {
  const int64_t at = row * part.cols + col;
  switch (part.dtype) {
    case DType::kI8:
      return static_cast<const int8_t*>(part.data)[at];
    case DType::kBf16: {
      Bf16 value;
      std::memcpy(&value, static_cast<const char*>(part.data) + at * 2, 2);
      return Bf16ToFloat(value);
    }
    default: {
      float value;
      std::memcpy(&value, static_cast<const char*>(part.data) + at * 4, 4);
      return value;
    }
  }
}

float RowScale(const WeightSource& part, int64_t row) {
  if (part.dtype != DType::kI8) return 1;
  float value;
  std::memcpy(&value, reinterpret_cast<const char*>(part.scale) + row * 4, 4);
  return value;
}

const dnnl::engine& CpuEngine() {
  static const dnnl::engine* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

}  // namespace

// The matrix as oneDNN likes it, and one compiled product for each number of rows in units of
// kRowUnit.
struct CpuWeight::Blocked {
  struct Product {
    dnnl::matmul primitive;
    int64_t scratch_bytes = 0;
  };

  int64_t cols, out_columns;
  dnnl::memory::data_type dtype;
  std::vector<float> output_scale;  // [out_columns], empty: none
  dnnl::memory weight;

  absl::Mutex mutex;
  // [rows / kRowUnit - 1][accumulate]; never replaced once made.
  std::array<std::array<std::unique_ptr<Product>, 2>, kRowBlock / kRowUnit> products
      ABSL_GUARDED_BY(mutex);

  dnnl::matmul::primitive_desc Describe(int64_t rows, bool accumulate,
                                        const dnnl::memory::desc& weight_desc) const {
    const dnnl::memory::desc a({rows, cols}, dtype, dnnl::memory::dims{cols, 1});
    const dnnl::memory::desc out({rows, out_columns}, dnnl::memory::data_type::f32,
                                 dnnl::memory::dims{out_columns, 1});
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (!output_scale.empty()) attributes.set_output_scales(1 << 1, output_scale);
    if (accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
    return dnnl::matmul::primitive_desc({a, weight_desc, out}, attributes, CpuEngine());
  }

  const Product& Get(int64_t rows, bool accumulate) {
    absl::MutexLock lock(&mutex);
    std::unique_ptr<Product>& product = products[rows / kRowUnit - 1][accumulate];
    if (product == nullptr) {
      const dnnl::matmul::primitive_desc description =
          Describe(rows, accumulate, weight.get_desc());
      product = std::make_unique<Product>();
      product->primitive = dnnl::matmul(description);
      product->scratch_bytes = static_cast<int64_t>(description.scratchpad_desc().get_size());
    }
    return *product;
  }

  void Run(const Product& product, int64_t rows, const void* a, float* out, void* scratch) const {
    const dnnl::engine& engine = CpuEngine();
    dnnl::stream stream(engine);
    const dnnl::memory a_memory({{rows, cols}, dtype, dnnl::memory::dims{cols, 1}}, engine,
                                const_cast<void*>(a));
    const dnnl::memory out_memory(
        {{rows, out_columns}, dnnl::memory::data_type::f32, dnnl::memory::dims{out_columns, 1}},
        engine, out);
    const dnnl::memory scratch_memory({{std::max<int64_t>(product.scratch_bytes, 1)},
                                       dnnl::memory::data_type::u8,
                                       dnnl::memory::dims{1}},
                                      engine, scratch);
    product.primitive.execute(stream, {{DNNL_ARG_SRC, a_memory},
                                       {DNNL_ARG_WEIGHTS, weight},
                                       {DNNL_ARG_DST, out_memory},
                                       {DNNL_ARG_SCRATCHPAD, scratch_memory}});
    stream.wait();
  }
};

CpuWeight::CpuWeight(absl::Span<const WeightSource> parts, const PackOptions& options, int64_t rows)
    : PackedWeight(rows, parts[0].cols, RoundUp(rows, kColumnBlock), options.compute_dtype),
      stored_dtype_(parts[0].dtype) {}

CpuWeight::~CpuWeight() = default;

absl::StatusOr<std::unique_ptr<CpuWeight>> CpuWeight::Pack(absl::Span<const WeightSource> parts,
                                                           const PackOptions& options) {
  omp_set_num_threads(1);
  int64_t rows = 0;
  for (const WeightSource& part : parts) rows += part.rows;
  std::unique_ptr<CpuWeight> weight(new CpuWeight(parts, options, rows));
  weight->FillLanes(parts);
  if (options.embed) weight->FillRows(parts);

  const bool bf16 = options.compute_dtype == DType::kBf16;
  const int64_t cols = weight->cols(), out_columns = weight->out_columns();
  auto blocked = std::make_unique<Blocked>();
  blocked->cols = cols;
  blocked->out_columns = out_columns;
  blocked->dtype = bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  // In f32 the scale goes into the weight, as the reference has it.
  const bool scale_after = bf16 && weight->stored_dtype_ == DType::kI8;
  if (scale_after) {
    blocked->output_scale = weight->scale_;
    blocked->output_scale.resize(out_columns, 0.0f);
  }

  // Row-major [cols, out_columns], then oneDNN reorders it.
  std::vector<float> plain(cols * out_columns, 0.0f);
  int64_t row = 0;
  for (const WeightSource& part : parts) {
    for (int64_t r = 0; r < part.rows; ++r, ++row) {
      const float scale = scale_after ? 1.0f : RowScale(part, r);
      for (int64_t c = 0; c < cols; ++c)
        plain[c * out_columns + row] = StoredValue(part, r, c) * scale;
    }
  }
  try {
    const dnnl::memory::desc plain_desc({cols, out_columns}, dnnl::memory::data_type::f32,
                                        dnnl::memory::dims{out_columns, 1});
    dnnl::memory plain_memory(plain_desc, CpuEngine(), plain.data());
    const dnnl::memory::desc any({cols, out_columns}, blocked->dtype,
                                 dnnl::memory::format_tag::any);
    blocked->weight =
        dnnl::memory(blocked->Describe(kRowBlock, false, any).weights_desc(), CpuEngine());
    dnnl::stream stream(CpuEngine());
    dnnl::reorder(plain_memory, blocked->weight).execute(stream, plain_memory, blocked->weight);
    stream.wait();
  } catch (const dnnl::error& error) {
    return absl::InternalError(
        absl::StrCat("oneDNN cannot pack a matrix of ", rows, " x ", cols, ": ", error.message));
  }
  weight->blocked_ = std::move(blocked);
  return weight;
}

void CpuWeight::FillLanes(absl::Span<const WeightSource> parts) {
  const int64_t padded_rows = RoundUp(rows(), kLanes);
  const bool bytes = stored_dtype_ == DType::kI8;
  const int64_t group = bytes ? 4 : 1;
  const int64_t groups = RoundUp(cols(), group) / group;
  const int64_t element_bytes = DTypeBytes(stored_dtype_);
  lane_data_.assign(padded_rows * groups * group * element_bytes, 0);
  if (bytes) {
    scale_.assign(padded_rows, 0.0f);
    row_sum_.assign(padded_rows, 0);
  }
  int64_t row = 0;
  for (const WeightSource& part : parts) {
    for (int64_t r = 0; r < part.rows; ++r, ++row) {
      if (bytes) scale_[row] = RowScale(part, r);
      for (int64_t c = 0; c < cols(); ++c) {
        const int64_t to =
            ((row / kLanes * groups + c / group) * kLanes + row % kLanes) * group + c % group;
        std::memcpy(&lane_data_[to * element_bytes],
                    static_cast<const char*>(part.data) + (r * cols() + c) * element_bytes,
                    element_bytes);
        if (bytes) row_sum_[row] += static_cast<const int8_t*>(part.data)[r * cols() + c];
      }
    }
  }
  lanes_ = {.dtype = stored_dtype_,
            .rows = rows(),
            .cols = cols(),
            .data = lane_data_.data(),
            .scale = scale_.data(),
            .row_sum = row_sum_.data()};
}

void CpuWeight::FillRows(absl::Span<const WeightSource> parts) {
  for (const WeightSource& part : parts) {
    const auto* data = static_cast<const uint8_t*>(part.data);
    row_data_.insert(row_data_.end(), data, data + part.rows * part.cols * DTypeBytes(part.dtype));
  }
}

void CpuWeight::EmbedRows(const EmbedParams& params, int64_t row_begin, int64_t row_end) const {
  const int64_t width = cols();
  for (int64_t r = row_begin; r < row_end; ++r) {
    const int64_t id = params.ids[r];
    const uint8_t* from = row_data_.data() + id * width * DTypeBytes(stored_dtype_);
    float* out = params.out + r * params.out_stride;
    switch (stored_dtype_) {
      case DType::kI8:
        for (int64_t c = 0; c < width; ++c)
          out[c] = static_cast<float>(reinterpret_cast<const int8_t*>(from)[c]) * scale_[id];
        break;
      case DType::kBf16:
        for (int64_t c = 0; c < width; ++c)
          out[c] = Bf16ToFloat(reinterpret_cast<const Bf16*>(from)[c]);
        break;
      default:
        std::memcpy(out, from, width * sizeof(float));
    }
  }
}

absl::Status CpuWeight::Matmul(ThreadPool& pool, const MatmulParams& params) const {
  if (params.rows == 0) return absl::OkStatus();
  // Blocks of rows, small enough that every thread has one.
  const int64_t block = std::clamp(
      RoundUp((params.rows + pool.threads() - 1) / pool.threads(), kRowUnit), kRowUnit, kRowBlock);
  const int64_t blocks = (params.rows + block - 1) / block;
  std::atomic<bool> failed{false};
  pool.ParallelFor(blocks, [&](int64_t b) {
    const int64_t begin = b * block;
    try {
      MultiplyBlock(params, begin, std::min(block, params.rows - begin));
    } catch (const dnnl::error&) {
      failed = true;
    }
  });
  if (failed) {
    return absl::InternalError(
        absl::StrCat("oneDNN failed on ", params.rows, " x ", cols(), " x ", rows()));
  }
  return absl::OkStatus();
}

void CpuWeight::MultiplyBlock(const MatmulParams& params, int64_t begin, int64_t rows) const {
  omp_set_num_threads(1);
  const int64_t element_bytes = DTypeBytes(compute_dtype());
  const int64_t row_bytes = cols() * element_bytes;
  const int64_t capacity = std::max(params.rows, params.row_capacity);
  const int64_t whole_rows = RoundUp(rows, kRowUnit);
  const Blocked::Product& product = blocked_->Get(whole_rows, params.accumulate);
  const char* a = static_cast<const char*>(params.a) + begin * params.a_stride * element_bytes;
  float* out = static_cast<float*>(params.out) + begin * out_columns();
  // oneDNN gets whole units of rows without gaps; where the caller's memory is not so, a copy.
  const bool copy_a = params.a_stride != cols() || begin + whole_rows > capacity;
  const bool copy_out = begin + whole_rows > capacity;
  const int64_t a_bytes = copy_a ? RoundUp(whole_rows * row_bytes, 64) : 0;
  const int64_t out_bytes = copy_out ? whole_rows * out_columns() * 4 : 0;
  char* scratch =
      static_cast<char*>(ThreadScratch(a_bytes + out_bytes + product.scratch_bytes + 64));
  if (copy_a) {
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(scratch + r * row_bytes, a + r * params.a_stride * element_bytes, row_bytes);
    }
    std::memset(scratch + rows * row_bytes, 0, (whole_rows - rows) * row_bytes);
    a = scratch;
  }
  float* target = out;
  if (copy_out) {
    target = reinterpret_cast<float*>(scratch + a_bytes);
    if (params.accumulate) {
      std::memcpy(target, out, rows * out_columns() * 4);
      std::memset(target + rows * out_columns(), 0, (whole_rows - rows) * out_columns() * 4);
    }
  }
  blocked_->Run(product, whole_rows, a, target, scratch + a_bytes + out_bytes);
  if (copy_out) std::memcpy(out, target, rows * out_columns() * 4);
}

void CpuWeight::LaneMatmul(ThreadPool& pool, const VectorKernels& kernels,
                           const MatmulParams& params, bool bytes_allowed) const {
  if (params.rows == 0) return;
  const LaneMatmulParams lane_params = {.weight = &lanes_,
                                        .a = static_cast<const float*>(params.a),
                                        .a_stride = params.a_stride,
                                        .rows = params.rows,
                                        .out = static_cast<float*>(params.out),
                                        .out_stride = out_columns(),
                                        .accumulate = params.accumulate};
  const int64_t blocks = (rows() + kLanes - 1) / kLanes;
  const bool use_bytes =
      bytes_allowed && stored_dtype_ == DType::kI8 && kernels.lane_matmul_bytes != nullptr;
  ByteRows bytes = {};
  if (use_bytes) {
    bytes.plane_stride = RoundUp(cols(), 64);
    const int64_t plane = params.rows * bytes.plane_stride;
    auto* memory = static_cast<uint8_t*>(ThreadScratch(2 * plane + params.rows * 4));
    auto* scale = reinterpret_cast<float*>(memory + 2 * plane);
    for (int64_t r = 0; r < params.rows; ++r) {
      kernels.to_bytes(lane_params.a + r * params.a_stride, cols(), bytes.plane_stride,
                       memory + r * bytes.plane_stride, memory + plane + r * bytes.plane_stride,
                       scale + r);
    }
    bytes.hi = memory;
    bytes.lo = memory + plane;
    bytes.scale = scale;
  }
  // A share worth handing to another thread: about 64 KiB of weight.
  const int64_t block_bytes = kLanes * cols() * DTypeBytes(stored_dtype_);
  const int64_t least = std::max<int64_t>(1, (int64_t{64} << 10) / block_bytes);
  const int64_t tasks = std::clamp<int64_t>(blocks / least, 1, pool.threads());
  pool.ParallelFor(tasks, [&](int64_t task) {
    const int64_t begin = blocks * task / tasks, end = blocks * (task + 1) / tasks;
    if (use_bytes) {
      kernels.lane_matmul_bytes(lane_params, bytes, begin, end);
    } else {
      kernels.lane_matmul(lane_params, begin, end);
    }
  });
}

}  // namespace mneme
