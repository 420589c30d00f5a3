// The leaf loops for the baseline of the compiler, which runs everywhere. Flags:
// kernels/CMakeLists.txt.

#define MNEME_VECTOR_KERNELS PortableVectorKernels
#include "kernels/cpu/vector_kernels_impl.h"
