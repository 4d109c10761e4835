#include "cpu/instruction_set.h"

#if defined(FUSEDOPTIM_X86)
#include <cpuid.h>
#endif

#include "rules/all.h"

namespace fusedoptim {

// What kernels.cpp and passes.cpp define for an instruction set.
#define FUSEDOPTIM_COLLECT(isa)                                                    \
  namespace isa {                                                                  \
  template <template <class> class Rule>                                           \
  const cpu::RuleKernels& kernels_of();                                            \
  const cpu::Passes& passes();                                                     \
  }                                                                                \
  template <template <class> class... Rules>                                       \
  static const cpu::InstructionSet* collect_##isa(RuleList<Rules...>) {            \
    static const cpu::RuleKernels* const rules[] = {&isa::kernels_of<Rules>()...}; \
    static const cpu::InstructionSet set{#isa, rules, isa::passes()};              \
    return &set;                                                                   \
  }                                                                                \
  const cpu::InstructionSet* cpu::isa() { return collect_##isa(AllRules()); }

FUSEDOPTIM_COLLECT(baseline)
#if defined(FUSEDOPTIM_X86)
FUSEDOPTIM_COLLECT(avx2)
FUSEDOPTIM_COLLECT(avx512)
#else
const cpu::InstructionSet* cpu::avx2() { return nullptr; }
const cpu::InstructionSet* cpu::avx512() { return nullptr; }
#endif

namespace cpu {

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

}  // namespace cpu
}  // namespace fusedoptim
