// What a step on CUDA devices needs besides its tasks: numbers there, streams and memory.
#include <algorithm>

#include "python/general_path.h"
#include "python/torch.h"

namespace fusedoptim::python {

const DeviceOptions* GeneralPath::options_on(Group& group, py::handle param, int device) {
  for (const auto& [index, options] : group.by_device) {
    if (index == device) return options;
  }
  DeviceOptions& options = device_options_.emplace_back();
  options.options = group.options.bytes;
  options.number_count = int(group.on_device.size());
  if (options.number_count > kMaxDeviceNumbers) throw std::runtime_error("too many options lie on a device");
  const double* first = reinterpret_cast<const double*>(group.options.bytes);
  for (int i = 0; i < options.number_count; ++i) {
    const OptionOnDevice& option = group.on_device[i];
    options.numbers[i] = number_on(param, device, option.tensor, DType::f64);
    options.numbers[i].option = int(option.place - first);
  }
  group.by_device.emplace_back(device, &options);
  return &options;
}

// As float32, or as `copy` if it must be copied, on the parameter's device; kept alive until the step is queued.
DeviceNumber GeneralPath::number_on(py::handle param, int device, py::handle number, DType copy) {
  TensorView view;
  if (read_number(number, device, copy, view)) {
    kept_.push_back(py::reinterpret_borrow<py::object>(number));
    return {view.data, view.dtype == DType::f64, 0};
  }
  kept_.push_back(Torch::get().number_beside(param, number, copy == DType::f64));
  if (!view.read(kept_.back().ptr()) || view.count != 1) {
    throw py::type_error("a tensor with one element was expected, got " + std::string(py::repr(number)));
  }
  return {view.data, copy == DType::f64, 0};
}

void GeneralPath::prepare_devices(const RunOptions& options, py::handle grad_scale, py::handle found_inf) {
  const Torch& torch = Torch::get();
  std::vector<cuda::DeviceRun> runs;
  for (const PreparedParam& row : rows_) {
    if (!row.on_device) continue;
    const int device = device_tasks_[row.task].device;
    auto run = std::find_if(runs.begin(), runs.end(), [&](const auto& known) { return known.device == device; });
    if (run == runs.end()) {
      runs.push_back({device, torch.current_stream({dlpack::kCuda, device})});
      run = runs.end() - 1;
      const auto number = [&](py::handle value) {
        return value.is_none() ? nullptr
                               : static_cast<const float*>(number_on(row.param, device, value, DType::f32).at);
      };
      run->found_inf = number(found_inf);
      run->grad_scale = number(grad_scale);
      run->capturing = driver_.is_capturing(device, run->stream);
    }
    if (row.numbers.step.is_on_host() && run->capturing) {
      throw std::runtime_error(
          "Attempting CUDA graph capture of step(), but a step count lies on the host, where no graph raises it: "
          "construct the optimizer with capturable=True");
    }
  }
  with_torchs_memory(runs, [&] { driver_.prepare(device_tasks_, runs, options.zero_grad, options.in_order); });
}

void GeneralPath::with_torchs_memory(const std::vector<cuda::DeviceRun>& runs, const std::function<void()>& prepare) {
  try {
    const py::gil_scoped_release released;
    prepare();
    return;
  } catch (const cuda::OutOfMemory&) {
    if (std::any_of(runs.begin(), runs.end(), [](const cuda::DeviceRun& run) { return run.capturing; })) throw;
  }
  Torch::get().give_back_cached_memory();
  const py::gil_scoped_release released;
  prepare();
}

}  // namespace fusedoptim::python
