// The recurrence alone, for bench/peers/ssd_peer.py beside it.

#ifndef MNEME_BENCH_CUDA_OPS_SSD_OPS_H_
#define MNEME_BENCH_CUDA_OPS_SSD_OPS_H_

#include <cstdint>

#include "bench/cuda_ops/network_shape.h"
#include "bench/cuda_ops/op_meter.h"

namespace mneme::bench {

// Ssd over `rows` tokens in 1, 4 and 16 equal sequences; rows of x, B, C and y as activations are
// on this backend, then in f32.
void MeasureSsd(OpMeter& meter, const NetworkShape& shape, int64_t rows);

}  // namespace mneme::bench

#endif  // MNEME_BENCH_CUDA_OPS_SSD_OPS_H_
