// One step of readers that advance by a token each, with all its operations but the landmark scan.

#ifndef MNEME_BENCH_CUDA_OPS_DECODE_STEPS_H_
#define MNEME_BENCH_CUDA_OPS_DECODE_STEPS_H_

#include <cstdint>

#include "bench/cuda_ops/network_shape.h"
#include "bench/cuda_ops/op_meter.h"

namespace mneme::bench {

// What a step costs as separate operations, with norms in their products, with the convolution in
// the recurrence too, and repeated: with a wait for the chosen tokens at each step, as a server has
// it, and queued back to back.
void MeasureDecodeSteps(OpMeter& meter, const NetworkShape& shape, int64_t readers);

}  // namespace mneme::bench

#endif  // MNEME_BENCH_CUDA_OPS_DECODE_STEPS_H_
