// Stands in for csrc/cuda/kernels.cpp in a program that links the kernels of some storage types only.
#include "cuda/launch.h"

namespace fusedoptim::cuda {

namespace f64 {
__attribute__((weak)) KernelHandle step_kernel(int rule, int variant);
}
namespace f32 {
__attribute__((weak)) KernelHandle step_kernel(int rule, int variant);
}
namespace bf16 {
__attribute__((weak)) KernelHandle step_kernel(int rule, int variant);
}
namespace f16 {
__attribute__((weak)) KernelHandle step_kernel(int rule, int variant);
}

KernelHandle step_kernel(int rule, int variant, DType dtype) {
  KernelHandle (*const find[])(int, int) = {f64::step_kernel, f32::step_kernel, bf16::step_kernel, f16::step_kernel};
  return find[int(dtype)] == nullptr ? nullptr : find[int(dtype)](rule, variant);
}

}  // namespace fusedoptim::cuda
