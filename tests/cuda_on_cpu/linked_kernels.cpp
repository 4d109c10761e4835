// Stands in for csrc/cuda/kernels.cpp in a program that links the kernels of one arithmetic type only.
#include "cuda/launch.h"

namespace fusedoptim::cuda {

namespace f64 {
__attribute__((weak)) KernelHandle step_kernel(int rule, int variant);
}
namespace f32 {
__attribute__((weak)) KernelHandle step_kernel(int rule, int variant);
}

KernelHandle step_kernel(int rule, int variant, bool in_double) {
  KernelHandle (*const find)(int, int) = in_double ? f64::step_kernel : f32::step_kernel;
  return find == nullptr ? nullptr : find(rule, variant);
}

}  // namespace fusedoptim::cuda
