#include "cpu/instruction_set.h"

#if defined(FUSEDOPTIM_X86)
#include <cpuid.h>
#endif

namespace fusedoptim::cpu {

#if !defined(FUSEDOPTIM_X86)
const InstructionSet* avx2() { return nullptr; }
const InstructionSet* avx512() { return nullptr; }
#endif

#if defined(FUSEDOPTIM_X86)
// Older clangs do not compile __builtin_cpu_supports("f16c"). Whether the system keeps the registers, "avx2" tells.
static bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

static bool runs_avx2() {
#if defined(FUSEDOPTIM_X86)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
#else
  return false;
#endif
}

static bool runs_avx512() {
#if defined(FUSEDOPTIM_X86)
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

static InstructionSets collect(bool with_avx2, bool with_avx512) {
  InstructionSets list{{}, 0};
  if (with_avx512 && avx512() != nullptr) list.sets[list.count++] = avx512();
  if (with_avx2 && avx2() != nullptr) list.sets[list.count++] = avx2();
  list.sets[list.count++] = baseline();
  return list;
}

InstructionSets built() { return collect(true, true); }
InstructionSets supported() { return collect(runs_avx2(), runs_avx512()); }

}  // namespace fusedoptim::cpu
