#include "python/device_grads.h"

#include <algorithm>

#include "python/memory_ranges.h"
#include "python/refusals.h"

namespace fusedoptim::python {
namespace {

View view_of(py::handle tensor) {
  View view;
  if (!Torch::get().is_plain(tensor.ptr()) || !Torch::get().view(tensor.ptr(), view)) {
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

bool lies_on_cuda(py::handle tensor) {
  View view;
  return Torch::get().is_plain(tensor.ptr()) && Torch::get().view(tensor.ptr(), view) &&
         view.device.type == dlpack::kCuda;
}

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
  View view;
  DType dtype;
  if (!Torch::get().is_plain(grad.ptr()) || !Torch::get().view(grad.ptr(), view) || view.device.type != dlpack::kCuda)
    return false;
  if (device_ == kHost) device_ = view.device.index;
  if (view.device.index != device_ || !dtype_of(view, dtype) || dtype == DType::f64 || is_negated(grad) ||
      (!view.row_major && !view.disjoint()))
    return false;
  const Layout* layout = nullptr;
  if (!view.row_major) {
    std::vector<int64_t>& numbers = layout_numbers_.emplace_back(view.sizes, view.sizes + view.ndim);
    numbers.insert(numbers.end(), view.strides, view.strides + view.ndim);
    layout = &layouts_.emplace_back(Layout{view.ndim, numbers.data(), numbers.data() + view.ndim});
  }
  grads_.push_back({view.data, view.count, dtype, layout, view.dense(), view.end});
  return true;
}

bool DeviceGrads::have_one_dtype() const {
  return std::all_of(grads_.begin(), grads_.end(),
                     [&](const cuda::NormGrad& grad) { return grad.dtype == grads_[0].dtype; });
}

bool DeviceGrads::share_memory() const {
  Extents extents;
  extents.begin();
  for (const cuda::NormGrad& grad : grads_) {
    if (grad.count > 0) extents.add(static_cast<const char*>(grad.data), grad.end, true);
  }
  return extents.are_shared(true);
}

cuda::DeviceRun DeviceGrads::run(cuda::NormDriver& driver) const {
  cuda::DeviceRun run{device_, stream()};
  run.capturing = driver.is_capturing(device_, run.stream);
  return run;
}

const float* DeviceGrads::number(py::object& number) const {
  if (number.is_none()) return nullptr;
  View view;
  DType dtype;
  const Torch& torch = Torch::get();
  const bool is_there = torch.is_plain(number.ptr()) && torch.view(number.ptr(), view) &&
                        view.device.type == dlpack::kCuda && view.device.index == device_ && view.count == 1 &&
                        dtype_of(view, dtype) && dtype == DType::f32 && !is_negated(number);
  if (!is_there) number = torch.number_beside(tensors_[0], number, false);
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
  const View norm = view_of(rounded);
  cuda::Measurement measurement{};
  measurement.grad_scale = number(grad_scale);
  measurement.store = store;
  measurement.scratch = memory_of<double>(scratch);
  measurement.rounded = norm.data;
  if (!dtype_of(norm, measurement.rounded_as)) throw py::type_error("the norm must be of a floating-point dtype");
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
