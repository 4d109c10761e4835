// Calls of the CUDA runtime: errors as exceptions, the current device put back.
#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <string>

#include "cuda/run.h"

namespace fusedoptim::cuda {

inline std::string describe(cudaError_t code) {
  return std::string(cudaGetErrorString(code)) + " (" + cudaGetErrorName(code) + ")";
}

inline void check(cudaError_t code, const char* doing) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // so that nobody else takes it for his own
  const std::string text = std::string("CUDA error while ") + doing + ": " + describe(code);
  if (code == cudaErrorMemoryAllocation) throw OutOfMemory(text);
  throw Error(text);
}

// Whether this thread has a context. Only the driver says so, and it is loaded if there is one.
inline bool has_context() {
  using GetCurrent = int (*)(void**);
  static const GetCurrent get_current = [] {
    void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    return driver == nullptr ? nullptr : reinterpret_cast<GetCurrent>(dlsym(driver, "cuCtxGetCurrent"));
  }();
  void* context = nullptr;
  return get_current == nullptr || (get_current(&context) == 0 && context != nullptr);
}

// The device that is current while it lives. A thread that had no context gets none on device 0 afterwards, as choosing
// that device again would make: it takes hundreds of megabytes.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    const bool had_context = has_context();
    check(cudaGetDevice(&before_), "asking for the current device");
    if (device == before_ && had_context) return;
    check(cudaSetDevice(device), "choosing the device");
    put_back_ = had_context;
  }
  ~CurrentDevice() {
    if (put_back_) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  bool put_back_ = false;
};

// While it lives, this thread may allocate, free and ask for events although some stream is being captured, by this
// thread or another: without it such a call is an error, and ends the capture.
class BesideCapture {
 public:
  BesideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~BesideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideCapture(const BesideCapture&) = delete;
  BesideCapture& operator=(const BesideCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace fusedoptim::cuda
