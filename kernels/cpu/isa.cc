#include "kernels/cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace mneme {
namespace {

#if defined(__x86_64__)
// CPUID leaf 7: subleaf 0 edx bits 22 (AMX-BF16) and 24 (AMX-TILE), subleaf 1 eax bit 5
// (AVX512_BF16).
bool HasAmxBf16() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tiles = (d >> 22 & 1) && (d >> 24 & 1);
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return false;
  return tiles && (a >> 5 & 1);
}

// Linux hands out the 8 KiB of tile registers only to processes that ask.
bool RequestTileRegisters() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kArchReqXcompPerm = 0x1023;
  constexpr int kXfeatureXtileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtileData) == 0;
#else
  return false;
#endif
}

CpuIsa Detect() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return CpuIsa::kPortable;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return CpuIsa::kAvx2;
  }
  return HasAmxBf16() && RequestTileRegisters() ? CpuIsa::kAmx : CpuIsa::kAvx512;
}
#endif

}  // namespace

CpuIsa DetectCpuIsa() {
#if defined(__x86_64__)
  static const CpuIsa isa = Detect();
  return isa;
#else
  return CpuIsa::kPortable;
#endif
}

const char* CpuIsaName(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable:
      return "portable";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAmx:
      return "amx";
  }
  return "?";
}

}  // namespace mneme
