#include "ptx_kernels.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

namespace cuda_on_cpu {
namespace {

// Static objects of other files use it before main.
std::map<std::string, PtxKernelEntry>& kernels() {
  static std::map<std::string, PtxKernelEntry> kernels;
  return kernels;
}

}  // namespace

const PtxKernelEntry* find_ptx_kernel(const char* name) {
  const auto found = kernels().find(name);
  return found == kernels().end() ? nullptr : &found->second;
}

RegisterPtxKernel::RegisterPtxKernel(const PtxKernelEntry& kernel) {
  if (kernels().emplace(kernel.name, kernel).second) return;
  std::fprintf(stderr, "two PTX kernels of one name: %s\n", kernel.name);
  std::abort();
}

}  // namespace cuda_on_cpu
