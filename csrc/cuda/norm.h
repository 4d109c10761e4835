// The driver of the kernels that measure gradients, and clip them in place. This header includes none of CUDA's, as
// run.h.
#pragma once

#include <memory>
#include <vector>

#include "core/sum.h"
#include "cuda/norm_launch.h"
#include "cuda/run.h"

namespace fusedoptim::cuda {

struct NormGrad {
  void* data;
  int64_t count;         // elements
  DType dtype;           // float32 or narrower
  const Layout* layout;  // of this one operand; null: contiguous, in the order of its elements
  bool is_dense;         // in whatever order, its elements fill one range of memory
  const char* end;       // of its memory
};

// What is measured, and where it goes; everything is on the device.
struct Measurement {
  const float* grad_scale = nullptr;  // null, or: what each element is divided by first, and rounded
  bool store = false;                 // the quotients
  double* scratch;                    // as many as scratch_size() says; the first becomes the norm
  void* rounded;                      // becomes the norm, as a number of type `rounded_as`
  DType rounded_as;
  Verdict verdict;
};

// In doubles.
int64_t scratch_size(const std::vector<NormGrad>& grads);

// Keeps the tables that its kernels read. Nothing waits for the device but as a step does (see Driver). All that needs
// memory comes before the launch, so that what throws OutOfMemory may be called again.
class NormDriver {
 public:
  NormDriver();
  ~NormDriver();

  const char* problem(int device) { return driver_.problem(device); }
  bool is_capturing(int device, void* stream) { return driver_.is_capturing(device, stream); }

  void measure(const std::vector<NormGrad>& grads, const DeviceRun& run, const Measurement& measurement);
  // Multiplies gradients, none of which shares memory with another, by clip_coefficient(norm, max_norm).
  void clip(const std::vector<NormGrad>& grads, const DeviceRun& run, const double* norm, double max_norm);
  void judge(const DeviceRun& run, const double* norm, const Verdict& verdict);

 private:
  struct State;
  Driver driver_;
  std::unique_ptr<State> state_;
};

}  // namespace fusedoptim::cuda
