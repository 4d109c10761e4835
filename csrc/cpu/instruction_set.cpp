#include "cpu/instruction_set.h"

namespace fusedoptim::cpu {

#if !defined(FUSEDOPTIM_X86)
const InstructionSet* avx2() { return nullptr; }
const InstructionSet* avx512() { return nullptr; }
#endif

static bool runs_avx2() {
#if defined(FUSEDOPTIM_X86)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
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
