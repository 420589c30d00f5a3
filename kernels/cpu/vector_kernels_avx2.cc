// The leaf loops for AVX2 and FMA. Flags: kernels/CMakeLists.txt.

#define MNEME_VECTOR_KERNELS Avx2VectorKernels
#include "kernels/cpu/vector_kernels_impl.h"
