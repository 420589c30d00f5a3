// Operations of readers that advance by one token each, on their own.

#ifndef MNEME_BENCH_CUDA_OPS_DECODE_OPS_H_
#define MNEME_BENCH_CUDA_OPS_DECODE_OPS_H_

#include "bench/cuda_ops/network_shape.h"
#include "bench/cuda_ops/op_meter.h"

namespace mneme::bench {

// The largest of them, queued one behind the other.
void MeasureDecodeOps(OpMeter& meter, const NetworkShape& shape);

// Those of a step with norms and gates in products, repeated many times in one graph: what the
// device takes, without the cost of queueing.
void MeasureDecodeOpsInGraphs(OpMeter& meter, const NetworkShape& shape);

}  // namespace mneme::bench

#endif  // MNEME_BENCH_CUDA_OPS_DECODE_OPS_H_
