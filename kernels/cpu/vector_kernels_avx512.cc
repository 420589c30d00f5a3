// The leaf loops for AVX-512 F, BW, DQ, VL. Flags: kernels/CMakeLists.txt.

#define MNEME_VECTOR_KERNELS Avx512VectorKernels
#include "kernels/cpu/vector_kernels_impl.h"
