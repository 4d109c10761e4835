// Finds a kernel among those that kernels.cu is compiled to, once per storage type.
#include "cuda/launch.h"

namespace fusedoptim::cuda {

namespace f64 {
KernelHandle step_kernel(int rule, int variant);
}
namespace f32 {
KernelHandle step_kernel(int rule, int variant);
}
namespace bf16 {
KernelHandle step_kernel(int rule, int variant);
}
namespace f16 {
KernelHandle step_kernel(int rule, int variant);
}

KernelHandle step_kernel(int rule, int variant, DType dtype) {
  switch (dtype) {
    case DType::f64:
      return f64::step_kernel(rule, variant);
    case DType::f32:
      return f32::step_kernel(rule, variant);
    case DType::bf16:
      return bf16::step_kernel(rule, variant);
    case DType::f16:
      return f16::step_kernel(rule, variant);
  }
  return nullptr;
}

}  // namespace fusedoptim::cuda
