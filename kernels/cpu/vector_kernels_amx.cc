// The leaf loops for AVX-512 with BF16 and VNNI, and AMX tiles. Flags: kernels/CMakeLists.txt.

#define MNEME_VECTOR_KERNELS AmxVectorKernels
#include "kernels/cpu/vector_kernels_impl.h"
