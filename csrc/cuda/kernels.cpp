// Finds a kernel among those that kernels.cu is compiled to, once per rule and arithmetic type.
#include "cuda/launch.h"
#include "rules/all.h"

namespace fusedoptim::cuda {

namespace f64 {
template <template <class> class Rule>
KernelHandle kernel_of(int variant);
}
namespace f32 {
template <template <class> class Rule>
KernelHandle kernel_of(int variant);
}

namespace {

template <template <class> class... Rules>
KernelHandle find(int rule, int variant, bool in_double, RuleList<Rules...>) {
  using Find = KernelHandle (*)(int variant);
  static constexpr Find kFinders[][2] = {{f32::kernel_of<Rules>, f64::kernel_of<Rules>}...};
  return kFinders[rule][in_double](variant);
}

}  // namespace

KernelHandle step_kernel(int rule, int variant, bool in_double) { return find(rule, variant, in_double, AllRules()); }

}  // namespace fusedoptim::cuda
