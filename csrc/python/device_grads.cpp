#include "python/device_grads.h"

#include <algorithm>

#include "python/memory_ranges.h"
#include "python/refusals.h"

namespace fusedoptim::python {
namespace {

TensorView view_of(py::handle tensor) {
  TensorView view;
  if (!Torch::get().is_plain(tensor.ptr()) || !view.read(tensor.ptr())) {
    throw py::type_error(std::string("a plain tensor was expected, got ") + Py_TYPE(tensor.ptr())->tp_name);
  }
  return view;
}

template <class T>
T* memory_of(py::handle tensor) {
  return tensor.is_none() ? nullptr : reinterpret_cast<T*>(view_of(tensor).data);
}

}  // namespace

const double* address_of(py::handle scratch) { return memory_of<double>(scratch); }

std::unique_ptr<DeviceGrads> DeviceGrads::of(py::list grads, cuda::NormDriver& driver) {
  if (!cuda::built() || grads.empty()) return nullptr;
  std::unique_ptr<DeviceGrads> all(new DeviceGrads);
  for (const py::handle grad : grads) {
    if (!all->add(grad)) return nullptr;
  }
  if (driver.problem(all->device_) != nullptr) return nullptr;
  all->tensors_ = std::move(grads);
  return all;
}

bool DeviceGrads::add(py::handle grad) {
  TensorView view;
  if (!read_gradient(grad, view) || !view.is_on_cuda()) return false;
  if (device_ == kHost) device_ = view.device.index;
  if (view.device.index != device_ || view.dtype == DType::f64) return false;
  grads_.push_back({view.data, view.count, *view.dtype, layouts_.add_unless_row_major(view), view.dense(), view.end});
  return true;
}

bool DeviceGrads::have_one_dtype() const {
  return std::all_of(grads_.begin(), grads_.end(),
                     [&](const cuda::NormGrad& grad) { return grad.dtype == grads_[0].dtype; });
}

bool DeviceGrads::share_memory() const {
  MemoryRanges ranges;
  ranges.begin();
  for (const cuda::NormGrad& grad : grads_) {
    if (grad.count > 0) ranges.add(static_cast<const char*>(grad.data), grad.end, true);
  }
  return ranges.overlap(true);
}

cuda::DeviceRun DeviceGrads::run(cuda::NormDriver& driver) const {
  cuda::DeviceRun run{device_, stream()};
  run.capturing = driver.is_capturing(device_, run.stream);
  return run;
}

const float* DeviceGrads::number(py::object& number) const {
  if (number.is_none()) return nullptr;
  TensorView view;
  if (!read_number(number, device_, DType::f32, view)) number = Torch::get().number_beside(tensors_[0], number, false);
  return memory_of<float>(number);
}

cuda::Verdict DeviceGrads::verdict(py::object& found_before, py::handle found, py::handle skipped) const {
  return {number(found_before), memory_of<float>(found), memory_of<int64_t>(skipped)};
}

void DeviceGrads::with_torchs_memory(bool capturing, const std::function<void()>& work) {
  try {
    return work();
  } catch (const cuda::OutOfMemory&) {
    if (capturing) throw;
  }
  Torch::get().give_back_cached_memory();
  work();
}

void DeviceGrads::measure(cuda::NormDriver& driver, py::object scratch, py::object rounded, py::object grad_scale,
                          bool store, py::object found_before, py::object found, py::object skipped) {
  const TensorView norm = view_of(rounded);
  if (!norm.is_number()) throw py::type_error("the norm must be of a floating-point dtype");
  cuda::Measurement measurement{};
  measurement.grad_scale = number(grad_scale);
  measurement.store = store;
  measurement.scratch = memory_of<double>(scratch);
  measurement.rounded = norm.data;
  measurement.rounded_as = *norm.dtype;
  measurement.verdict = verdict(found_before, found, skipped);
  const cuda::DeviceRun here = run(driver);
  with_torchs_memory(here.capturing, [&] { driver.measure(grads_, here, measurement); });
  if (store) Torch::get().bump_versions(tensors_);
}

void DeviceGrads::judge(cuda::NormDriver& driver, py::object scratch, py::object found_before, py::object found,
                        py::object skipped) const {
  driver.judge(run(driver), address_of(scratch), verdict(found_before, found, skipped));
}

void DeviceGrads::clip(cuda::NormDriver& driver, py::object scratch, double max_norm) {
  const cuda::DeviceRun here = run(driver);
  with_torchs_memory(here.capturing, [&] { driver.clip(grads_, here, address_of(scratch), max_norm); });
  Torch::get().bump_versions(tensors_);
}

void define_device_grads(py::module_& m) {
  using namespace pybind11::literals;
  py::class_<cuda::NormDriver>(m, "NormDriver").def(py::init<>());
  py::class_<DeviceGrads>(m, "DeviceGrads")
      .def_static("of", &DeviceGrads::of, "grads"_a, "driver"_a)
      .def("scratch_size", &DeviceGrads::scratch_size)
      .def("have_one_dtype", &DeviceGrads::have_one_dtype)
      .def("share_memory", &DeviceGrads::share_memory)
      .def("are_captured", &DeviceGrads::are_captured, "driver"_a)
      .def_property_readonly("device", &DeviceGrads::device)
      .def("measure", &DeviceGrads::measure, "driver"_a, "scratch"_a, "rounded"_a, "grad_scale"_a, "store"_a,
           "found_before"_a, "found"_a, "skipped"_a)
      .def("judge", &DeviceGrads::judge, "driver"_a, "scratch"_a, "found_before"_a, "found"_a, "skipped"_a)
      .def("clip", &DeviceGrads::clip, "driver"_a, "scratch"_a, "max_norm"_a);
}

}  // namespace fusedoptim::python
