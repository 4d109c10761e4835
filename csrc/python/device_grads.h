// Gradients on one CUDA device: their norm is found there, and stays there, so that nobody waits for it.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <memory>
#include <vector>

#include "cuda/norm.h"
#include "python/tensor_view.h"
#include "python/torch.h"

namespace fusedoptim::python {

class DeviceGrads {
 public:
  // Null unless all of them are plain tensors on one device whose kernels run, of float32, bfloat16 or float16.
  static std::unique_ptr<DeviceGrads> of(py::list grads, cuda::NormDriver& driver);

  int64_t scratch_size() const { return cuda::scratch_size(grads_); }  // in doubles, for measure()
  bool have_one_dtype() const;
  bool share_memory() const;  // one with another
  int device() const { return device_; }
  bool are_captured(cuda::NormDriver& driver) const { return driver.is_capturing(device_, stream()); }

  // Queues what finds the norm. Numbers: tensors of one element, on any device, or plain numbers, or None; `scratch`,
  // `rounded` (of whatever floating-point dtype), `found` (float32) and `skipped` (int64) are tensors on the device,
  // the last two or None. `store`: write the quotients by `grad_scale` to the gradients.
  void measure(cuda::NormDriver& driver, py::object scratch, py::object rounded, py::object grad_scale, bool store,
               py::object found_before, py::object found, py::object skipped);
  // Judges by a norm that measure() has left in `scratch`.
  void judge(cuda::NormDriver& driver, py::object scratch, py::object found_before, py::object found,
             py::object skipped) const;
  // Clips in place, by a norm that measure() has left in `scratch`.
  void clip(cuda::NormDriver& driver, py::object scratch, double max_norm);

 private:
  DeviceGrads() = default;
  bool add(py::handle grad);
  void* stream() const { return Torch::get().current_stream({dlpack::kCuda, device_}); }
  cuda::DeviceRun run(cuda::NormDriver& driver) const;
  cuda::Verdict verdict(py::object& found_before, py::handle found, py::handle skipped) const;
  const float* number(py::object& number) const;  // its address, once it is brought to the device if need be
  static void with_torchs_memory(bool capturing, const std::function<void()>& work);

  int device_ = kHost;  // until there is one
  py::list tensors_;
  std::vector<cuda::NormGrad> grads_;
  LayoutStore layouts_;
};

// The address of the float64 numbers of a tensor.
const double* address_of(py::handle scratch);

void define_device_grads(py::module_& m);

}  // namespace fusedoptim::python
