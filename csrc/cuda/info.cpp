#include "cuda/info.h"

#if defined(FUSEDOPTIM_CUDA)
#include <cuda_runtime_api.h>

#include <sstream>

namespace fusedoptim::cuda {

namespace {

std::string as_text(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

}  // namespace

std::vector<std::string> architectures() {
  std::vector<std::string> all;
  std::istringstream listed(FUSEDOPTIM_CUDA_ARCHITECTURES);
  for (std::string one; std::getline(listed, one, ',');) all.push_back(one);
  return all;
}

std::optional<std::string> compiler() { return "nvcc " FUSEDOPTIM_NVCC_VERSION; }

std::optional<std::string> runtime() { return as_text(CUDART_VERSION); }

std::optional<std::string> error() {
  int driver = 0, devices = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "no CUDA driver is installed";
  const int needed = CUDART_VERSION / 1000 * 1000;  // a driver serves every runtime of its own major version
  if (driver < needed) {
    return "the installed driver supports CUDA " + as_text(driver) + ", and this build needs CUDA " + as_text(needed);
  }
  const cudaError_t counted = cudaGetDeviceCount(&devices);
  if (counted == cudaSuccess && devices > 0) return std::nullopt;
  cudaGetLastError();  // or somebody else's check would find it
  if (counted == cudaSuccess || counted == cudaErrorNoDevice) return "there is no CUDA device";
  return cudaGetErrorString(counted);
}

}  // namespace fusedoptim::cuda
#else
namespace fusedoptim::cuda {

std::vector<std::string> architectures() { return {}; }

std::optional<std::string> compiler() { return std::nullopt; }

std::optional<std::string> runtime() { return std::nullopt; }

std::optional<std::string> error() { return "this build has no CUDA kernels"; }

}  // namespace fusedoptim::cuda
#endif
