// Instruction sets of the CPU backend, chosen at run time: one binary runs on every x86-64 (and,
// portably, elsewhere).

#ifndef MNEME_KERNELS_CPU_ISA_H_
#define MNEME_KERNELS_CPU_ISA_H_

namespace mneme {

// Each level includes the ones before it.
enum class CpuIsa {
  kPortable,  // plain C++ vectors of whatever the compiler's baseline has
  kAvx2,      // AVX2 and FMA
  kAvx512,    // AVX-512 F, BW, DQ, VL
  kAmx,       // AVX-512 BF16 and AMX tiles in bf16
};

// The highest level that this processor and its operating system allow. Asks the system for the AMX
// registers once.
CpuIsa DetectCpuIsa();

// "portable", "avx2", "avx512", "amx".
const char* CpuIsaName(CpuIsa isa);

}  // namespace mneme

#endif  // MNEME_KERNELS_CPU_ISA_H_
