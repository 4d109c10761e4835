// Stands in for csrc/cuda/kernels.cpp in a program that links the kernels of one arithmetic type only, which
// FUSEDOPTIM_ARITHMETIC names.
#include <string_view>

#include "cuda/launch.h"
#include "rules/all.h"

namespace fusedoptim::cuda {

namespace FUSEDOPTIM_ARITHMETIC {
template <template <class> class Rule>
KernelHandle kernel_of(int variant);
}

namespace {

#define NAME(x) #x
#define NAME_OF(x) NAME(x)
constexpr bool kInDouble = std::string_view(NAME_OF(FUSEDOPTIM_ARITHMETIC)) == "f64";

template <template <class> class... Rules>
KernelHandle find(int rule, int variant, RuleList<Rules...>) {
  KernelHandle (*const finders[])(int) = {FUSEDOPTIM_ARITHMETIC::kernel_of<Rules>...};
  return finders[rule](variant);
}

}  // namespace

KernelHandle step_kernel(int rule, int variant, bool in_double) {
  return in_double == kInDouble ? find(rule, variant, AllRules()) : nullptr;
}

}  // namespace fusedoptim::cuda
