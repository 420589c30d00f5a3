// Landmark scan with fused top-k on the CPU: bound by the rate at which memory delivers the
// landmarks.

#ifndef MNEME_KERNELS_CPU_LANDMARK_TOPK_H_
#define MNEME_KERNELS_CPU_LANDMARK_TOPK_H_

#include "kernels/cpu/isa.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/landmark_topk.h"

namespace mneme {

// `params` are checked already (Backend::LandmarkTopK). `isa` at most DetectCpuIsa(). The result
// does not depend on the number of threads nor on which queries share the call; between instruction
// sets scores differ by rounding alone.
void LandmarkTopKCpu(ThreadPool& pool, const LandmarkTopKParams& params, CpuIsa isa);

}  // namespace mneme

#endif  // MNEME_KERNELS_CPU_LANDMARK_TOPK_H_
