// Finds a kernel among those that kernels.cu is compiled to, once per arithmetic type.
#include "cuda/launch.h"

namespace fusedoptim::cuda {

namespace f64 {
KernelHandle step_kernel(int rule, int variant);
}
namespace f32 {
KernelHandle step_kernel(int rule, int variant);
}

KernelHandle step_kernel(int rule, int variant, bool in_double) {
  return in_double ? f64::step_kernel(rule, variant) : f32::step_kernel(rule, variant);
}

}  // namespace fusedoptim::cuda
