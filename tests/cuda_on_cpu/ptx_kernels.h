// The kernels that were translated from PTX and linked into this program, by their mangled names.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cuda_on_cpu {

// Runs one thread. Parameter i lies at params[i], as for cudaLaunchKernel.
using PtxKernel = void (*)(const void* const* params);

struct PtxKernelEntry {
  const char* name;
  PtxKernel run;
  std::vector<size_t> param_bytes;
  uint32_t max_threads;  // of a block: a launch with more fails on a device; 0 where the kernel does not say
};

// Null if there is none.
const PtxKernelEntry* find_ptx_kernel(const char* name);

// What generated files call before main, once for each kernel.
struct RegisterPtxKernel {
  explicit RegisterPtxKernel(const PtxKernelEntry& kernel);
};

}  // namespace cuda_on_cpu
