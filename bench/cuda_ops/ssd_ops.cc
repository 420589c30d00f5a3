#include "bench/cuda_ops/ssd_ops.h"

#include <string>
#include <vector>

namespace mneme::bench {
namespace {

void MeasureOne(OpMeter& meter, const NetworkShape& c, int64_t rows, int64_t sequences,
                DType io_dtype) {
  const int64_t values = rows * c.conv_dim();
  const Buffer xbc = io_dtype == DType::kBf16 ? meter.Halves(values) : meter.Floats(values),
               dt = meter.Floats(rows * c.heads), heads = meter.Floats(3 * c.heads),
               states = meter.Floats(sequences * c.state_floats()),
               y = meter.Floats(rows * c.inner());
  std::vector<SequenceRows> sequence_rows;
  for (int64_t i = 0; i < sequences; ++i) {
    sequence_rows.push_back({.row_begin = i * (rows / sequences),
                             .row_count = rows / sequences,
                             .state = states.as<float>() + i * c.state_floats()});
  }
  const SsdParams ssd = {.xbc = xbc.as<float>(),
                         .xbc_stride = c.conv_dim(),
                         .dt = dt.as<float>(),
                         .dt_stride = c.heads,
                         .dt_bias = heads.as<float>(),
                         .a_log = heads.as<float>() + c.heads,
                         .d_skip = heads.as<float>() + 2 * c.heads,
                         .heads = c.heads,
                         .head_dim = c.head_dim,
                         .state_size = c.state,
                         .sequences = sequence_rows.data(),
                         .sequence_count = sequences,
                         .rows = rows,
                         .y = y.as<float>(),
                         .y_stride = c.inner(),
                         .compute_dtype = DType::kBf16,
                         .io_dtype = io_dtype};
  const auto row_count = static_cast<double>(rows);
  meter.Line("Ssd, " + std::to_string(sequences) + " x " + std::to_string(rows / sequences) + ", " +
                 std::string(DTypeName(io_dtype)) + " rows",
             row_count * (static_cast<double>((c.conv_dim() + c.inner()) * DTypeBytes(io_dtype)) +
                          static_cast<double>(c.heads) * 4),
             row_count * c.ssd_ops(), [&] { return meter.backend().Ssd(ssd); });
}

}  // namespace

void MeasureSsd(OpMeter& meter, const NetworkShape& shape, int64_t rows) {
  const DType activation = meter.backend().activation_dtype(DType::kBf16);
  for (const int64_t sequences : {1, 4, 16}) MeasureOne(meter, shape, rows, sequences, activation);
  if (activation == DType::kF32) return;
  for (const int64_t sequences : {1, 4, 16}) MeasureOne(meter, shape, rows, sequences, DType::kF32);
}

}  // namespace mneme::bench
