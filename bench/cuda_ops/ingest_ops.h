// The lower half of the network, from token ids to pages and landmarks, in the order of
// RambaModel::LowerPass: each operation of it on its own, then the whole.

#ifndef MNEME_BENCH_CUDA_OPS_INGEST_OPS_H_
#define MNEME_BENCH_CUDA_OPS_INGEST_OPS_H_

#include <cstdint>

#include "bench/cuda_ops/network_shape.h"
#include "bench/cuda_ops/op_meter.h"

namespace mneme::bench {

// `rows` tokens in sequences of 4096 (or one, of fewer); a multiple of shape.chunk.
void MeasureIngest(OpMeter& meter, const NetworkShape& shape, int64_t rows);

}  // namespace mneme::bench

#endif  // MNEME_BENCH_CUDA_OPS_INGEST_OPS_H_
