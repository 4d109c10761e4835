// The first half of a step: everything is read and checked, nothing is changed.
#include <algorithm>
#include <cstring>

#include "python/general_path.h"
#include "python/refusals.h"

namespace fusedoptim::python {
namespace {

// What these stand for only their own methods know, which torch's implementations call: with fused=True as well.
constexpr const char kSubclass[] = "it is a tensor subclass";
constexpr const char kGradOfSubclass[] = "its gradient is a tensor subclass";
constexpr const char kStateOfItsOwn[] = "its state is a mapping with methods of its own";

// Torch's own implementations do not all take it, so there is another cure.
constexpr const char kSparseGrad[] = "its gradient is sparse";

bool is_for_torch_alone(const char* reason) {
  return reason == kSubclass || reason == kGradOfSubclass || reason == kStateOfItsOwn;
}

std::string describe(py::handle group, py::ssize_t group_index, py::ssize_t index, py::handle param) {
  std::string text = "parameter " + std::to_string(index) + " of group " + std::to_string(group_index) + " (";
  if (group.contains("param_names")) text += "'" + std::string(py::str(group["param_names"][py::int_(index)])) + "', ";
  return text + "shape " + std::string(py::str(py::tuple(py::list(param.attr("shape"))))) + ", " +
         std::string(py::str(param.attr("dtype"))) + ", " + std::string(py::str(param.attr("device"))) + ")";
}

std::string shown(double number) { return py::str(py::float_(number)); }

// "lr=0.1, momentum=0.9"
std::string numbers_of(const py::object& group) {
  std::string text;
  for (const auto& [name, value] : py::dict(group)) {
    const bool is_number = PyFloat_Check(value.ptr()) || (PyLong_Check(value.ptr()) && !PyBool_Check(value.ptr()));
    if (!is_number && !(Torch::get().is_plain(value.ptr()) && py::cast<int64_t>(value.attr("numel")()) == 1)) continue;
    text += (text.empty() ? "" : ", ") + std::string(py::str(name)) + "=" +
            std::string(py::str(is_number ? py::reinterpret_borrow<py::object>(value) : value.attr("item")()));
  }
  return text;
}

// Said here in few words: pybind11's own error would print every parameter.
void check_dict(const py::object& state) {
  if (PyDict_Check(state.ptr())) return;
  throw py::type_error(std::string("the optimizer's state must be a dict, got ") + Py_TYPE(state.ptr())->tp_name);
}

}  // namespace

Plan::Plan(const std::string& rule, py::iterable torch_parts, py::iterable mode_checks, py::object forward_ad,
           py::object watch_operations)
    : rule_(find_rule(rule)), forward_ad_(std::move(forward_ad)), watch_operations_(std::move(watch_operations)) {
  for (const py::handle check : mode_checks) mode_checks_.push_back(py::reinterpret_borrow<py::object>(check));
  for (const py::handle part : torch_parts) {
    const auto [name, function] = py::cast<std::pair<py::str, py::object>>(part);
    torch_parts_.emplace_back(name, function);
  }
  for (int k = 0; k < rule_.max_states; ++k) names_.push_back(intern(rule_.states[k]));
  if (rule_.counts_steps) names_.push_back(intern("step"));
}

py::object Plan::gather(py::iterable groups, py::object state, py::object new_state, bool write_grads,
                        const std::vector<double>& clips, const Limits& limits) {
  const Use use(*this);
  forget();
  extents_.begin();
  check_dict(state);
  const Torch& torch = Torch::get();
  py::list left_to_torch;
  bool any_left = false;
  int g = -1;
  for (const py::handle each : groups) {
    const py::object dict = py::reinterpret_borrow<py::object>(each);
    const GroupReader reader(dict, ++g);
    const py::object params = reader.params();
    py::list left;
    Group* group = nullptr;
    if (!reader.asks_for_torch()) {
      group = &groups_.emplace_back();
      group->index = g;
      group->dict = dict;
      group->params = params;
      group->factor = (reader.flag("maximize") ? -1 : 1) * clip_of(clips, g);
      if (limits.norm != nullptr && limits.of_groups.at(size_t(g))) {
        group->norm = limits.norm;
        group->max_norm = *limits.of_groups[size_t(g)];
        group->norm_device = limits.device;
      }
      group->averages = reader.average(group->average_weight);
      group->strict = reader.flag("fused");
      rule_.read(GroupReader(dict, g, &group->on_device), group->options);
    }
    const bool all = all_general_ || group == nullptr || !group->on_device.empty() || !reader.has_list();
    if (group != nullptr) group->all_general = all;
    size_t next_odd = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params.ptr()); ++i) {
      const Place place{g, i, PyList_GET_ITEM(params.ptr(), i)};
      if (!all && !is_odd(place, next_odd)) {
        skipped_by_host_ = left_for_fast_path_ = true;  // all of these are on the host
        continue;
      }
      const py::object param = py::reinterpret_borrow<py::object>(place.param);
      py::object grad = torch.grad(param);
      if (grad.is_none()) continue;
      if (group != nullptr) {
        const char* reason;
        try {
          const py::object own = py::reinterpret_borrow<py::object>(find_by_identity(state.ptr(), param.ptr()));
          reason = add(*group, param, std::move(grad), own.ptr(), new_state, write_grads);
        } catch (const ParamError& error) {
          if (reasons_ != nullptr) {
            reasons_->push_back({g, i, nullptr, error.text});
            continue;
          }
          PyErr_SetString(error.type, (error.text + " in " + describe(dict, g, i, param)).c_str());
          throw py::error_already_set();
        }
        if (reasons_ != nullptr) {
          const bool refused = reason != nullptr && group->strict && !is_for_torch_alone(reason);
          reasons_->push_back({g, i, reason, refused ? std::string("fused=True, but ") + reason : ""});
        }
        if (reason == nullptr || reasons_ != nullptr) continue;
        if (group->strict && !is_for_torch_alone(reason)) {
          throw std::runtime_error(
              "`fused=True` requires all the params to be floating point Tensors of supported devices: " +
              std::string(cuda::built() ? "['cpu', 'cuda']" : "['cpu']") + " but " + describe(dict, g, i, param) +
              " cannot be taken by the fused kernels: " + reason +
              (reason == kSparseGrad ? "; use SparseAdam, or SGD without fused=True"
                                     : "; with fused=None torch's own implementation takes it"));
        }
      }
      if (reasons_ != nullptr) reasons_->push_back({g, i, "its group asks for torch's own implementation", ""});
      left.append(param);
      any_left = true;
    }
    left_to_torch.append(left);
  }
  gathered_ = true;
  return any_left ? py::object(left_to_torch) : py::none();
}

const char* Plan::add(Group& group, py::handle param, py::object grad, PyObject* state, py::handle new_state,
                      bool write_grads) {
  const Torch& torch = Torch::get();
  DTensor whole;  // the parameter, if it is none that is plain
  py::handle local = param, local_grad = grad;
  const bool plain = torch.is_plain(param.ptr());
  if (!plain) {
    if (const char* reason = open_shards(param, grad, whole, local, local_grad)) return reason;
  } else if (!torch.is_plain(grad.ptr())) {
    return kGradOfSubclass;
  }
  Views views;
  DType dtype;
  if (const char* reason = view_param_and_grad(views, local, local_grad, dtype)) return reason;

  Row row;
  row.states = 0;
  int variant = rule_.variant(group.options, dtype, false);
  const int states = states_of(group, variant);
  if (states > 0 || rule_.counts_steps) {
    if (state != nullptr && !is_transparent(state) && PyObject_HasAttrString(state, "keys")) return kStateOfItsOwn;
    PyObject* entries[kMaxOwned + 1];
    row.states = states;
    find_entries(state, group, states, entries);
    bool viewed = true;
    row.average_is_new = group.averages && entries[states - 1] == nullptr;
    row.is_new = is_new(group, entries, states);
    if (row.is_new || row.average_is_new) {
      py::object& made = fresh_[param.ptr()];
      if (!made) {
        made = new_state(param, group.dict);
        viewed = false;
      }
      if (row.is_new) {
        PyObject* const average = group.averages ? entries[states - 1] : nullptr;
        row.fresh_state = made;
        find_entries(row.fresh_state.ptr(), group, states, entries);
        if (average != nullptr) {  // which goes on
          row.fresh_state = made.attr("copy")();
          row.fresh_state.attr("pop")(average_name_);
          entries[states - 1] = average;
        }
        const int next_variant = variant;  // of as many states
        variant = rule_.variant(group.options, dtype, true);
        if (variant != next_variant) skipped_by_host_ = true;  // one that is skipped must be the first again
      } else {
        py::dict alone;
        alone[average_name_] = kept_.emplace_back(made[average_name_]);
        row.fresh_state = alone;
        entries[states - 1] = kept_.back().ptr();
      }
      if (row.average_is_new) skipped_by_host_ = true;
    }
    std::copy(entries, entries + states + (rule_.counts_steps ? 1 : 0), row.entries);
    if (const char* reason = open_states(group, states, entries, plain ? nullptr : &whole)) return reason;
    if (!viewed || !plain) {  // Python code ran, and may have changed what the views borrow
      const DType before = dtype;
      if (const char* reason = view_param_and_grad(views, local, local_grad, dtype)) return reason;
      if (dtype != before)
        throw ParamError{PyExc_RuntimeError, "the dtype was changed while the step was being prepared"};
    }
    if (const char* reason = view_states(views, group, states, entries)) return reason;
    if (rule_.counts_steps) {
      if (const char* reason = view_step(entries[states], views[0], row.step)) return reason;
      if (!row.step.on_device) skipped_by_host_ = true;
      if (row.step.next <= 0) {
        throw ParamError{PyExc_RuntimeError, "step must be at least 0, got " + shown(row.step.next - 1) +
                                                 ": set it right in the state of this parameter,"};
      }
    }
  }
  if (write_grads && views[1].count > 0 && !views[1].dense() && !views[1].disjoint()) {
    throw ParamError{
        PyExc_RuntimeError,
        std::string(kSharedElements) + " a gradient to be zeroed (zero_grad=\"to_none\" can drop it) or unscaled"};
  }
  row.on_device = views[0].device.type == dlpack::kCuda;
  if (!row.on_device) skipped_by_host_ = true;
  if (group.norm != nullptr && (row.on_device ? views[0].device.index : kHost) != group.norm_device)
    throw ParamError{PyExc_RuntimeError, "the gradient was moved to another device since its norm was measured"};
  row.group = &group;
  row.param = py::reinterpret_borrow<py::object>(param);
  row.hash = hash_of(param.ptr());
  row.grad = std::move(grad);
  add_task(row, views, dtype, variant, 2 + states);
  rows_.push_back(std::move(row));
  return nullptr;
}

const char* Plan::view_param_and_grad(Views& views, py::handle param, py::handle grad, DType& dtype) {
  const Torch& torch = Torch::get();
  if (!torch.view(param.ptr(), views[0])) return "torch does not show its memory";
  if (!torch.view(grad.ptr(), views[1])) {
    return py::cast<bool>(grad.attr("is_sparse")) ? kSparseGrad : "its gradient is sparse or has no memory to show";
  }
  const dlpack::Device device = views[0].device;
  if (device.type == dlpack::kCuda) {
    if (const char* problem = driver_.problem(device.index)) return problem;
  } else if (device.type != dlpack::kCpu) {
    return "its device is not supported";
  }
  if (!dtype_of(views[0], dtype)) return "its dtype is not float64, float32, bfloat16 or float16";
  return check_param_and_grad(param, grad, views[0], views[1]);
}

const char* Plan::open_shards(py::handle param, py::handle grad, DTensor& whole, py::handle& local,
                              py::handle& local_grad) {
  DTensor whole_grad;
  if (!whole.open(param)) return kSubclass;
  if (whole.is_sum()) return "it is a DTensor with a Partial placement";
  if (!whole_grad.open(grad)) return "its gradient is not a DTensor of a plain tensor, as it is";
  if (!whole_grad.is_cut_as(whole)) return "its gradient is a DTensor on another mesh or with other placements";
  local = kept_.emplace_back(whole.local());
  local_grad = kept_.emplace_back(whole_grad.local());
  return nullptr;
}

void Plan::find_entries(PyObject* state, Group& group, int count, PyObject** entries) {
  if (state != nullptr && !PyDict_Check(state)) throw ParamError{PyExc_TypeError, "the state must be a dict"};
  PyObject* const* const names = names_of(group, count);
  const auto find = [&](PyObject* name) -> PyObject* {
    PyObject* found = state == nullptr ? nullptr : PyDict_GetItemWithError(state, name);
    if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
    if (found == nullptr || found == Py_None) return nullptr;
    kept_.push_back(py::reinterpret_borrow<py::object>(found));  // Python code or another thread may take it out
    return found;
  };
  for (int k = 0; k < count; ++k) entries[k] = find(names[k]);
  if (rule_.counts_steps) entries[count] = find(names[count]);
}

bool Plan::is_new(const Group& group, PyObject* const* entries, int count) const {
  const int all = count + (rule_.counts_steps ? 1 : 0), average = group.averages ? count - 1 : -1;
  if (all == (average >= 0 ? 1 : 0)) return false;  // there is nothing else
  for (int k = 0; k < all; ++k) {
    if (k != average && entries[k] != nullptr) return false;
  }
  return true;
}

const char* Plan::open_states(Group& group, int count, PyObject** entries, const DTensor* whole) {
  for (int k = 0; k < count; ++k) {
    if (entries[k] == nullptr) {
      throw ParamError{PyExc_KeyError, "the state has no '" + std::string(py::str(names_of(group, count)[k])) + "'"};
    }
    if (whole == nullptr) {
      if (!Torch::get().is_plain(entries[k])) return "its state is not a plain tensor";
    } else {
      DTensor state;
      if (!state.open(entries[k])) return "its state is not a DTensor of a plain tensor, as it is";
      if (!state.is_cut_as(*whole)) return "its state is a DTensor on another mesh or with other placements";
      entries[k] = kept_.emplace_back(state.local()).ptr();
    }
  }
  return nullptr;
}

const char* Plan::view_states(Views& views, Group& group, int count, PyObject* const* entries) {
  const Torch& torch = Torch::get();
  for (int k = 0; k < count; ++k) {
    View& view = views[2 + k];
    if (!torch.view(entries[k], view)) return "its state is sparse or has no memory to show";
    if (!view.same_sizes(views[0])) {
      throw ParamError{PyExc_RuntimeError, std::string(py::str(names_of(group, count)[k])) + " has shape " +
                                               shape_text(view) + ", which does not fit"};
    }
    if (const char* reason = check_state(views, 2 + k)) return reason;
  }
  return nullptr;
}

const char* Plan::view_step(PyObject* tensor, const View& param, Step& out) {
  const Torch& torch = Torch::get();
  View view;
  DType dtype;
  if (tensor == nullptr) throw ParamError{PyExc_KeyError, "the state has no 'step'"};
  if (!torch.is_plain(tensor) || !torch.view(tensor, view)) return "its step is not a plain tensor";
  if (view.count != 1 || is_negated(tensor)) return "its step is not one number, or is a lazily negated view";
  out.on_device = view.device.type != dlpack::kCpu;
  if (out.on_device && (view.device.type != param.device.type || view.device.index != param.device.index))
    return "its step is neither on the CPU nor on its own device";
  if (!dtype_of(view, dtype) || (dtype != DType::f32 && dtype != DType::f64))
    return "its step is not float32 or float64";
  out.at = view.data;
  out.is_double = dtype == DType::f64;
  if (out.on_device) return nullptr;
  add_range(view, false);  // one count may serve several parameters
  read_step(out);
  out.next = out.seen;
  return nullptr;
}

// Copied as bytes, for a tensor over foreign memory may begin anywhere.
bool Plan::read_step(Step& step) {
  const double before = step.seen;
  double count = 0;
  float narrow = 0;
  step.is_double ? std::memcpy(&count, step.at, sizeof(double)) : std::memcpy(&narrow, step.at, sizeof(float));
  step.seen = step.is_double ? count + 1 : double(narrow + 1);
  return step.seen != before && (step.seen == step.seen || before == before);  // one NaN is as another
}

void Plan::add_range(const View& view, bool is_grad) {
  if (view.count == 0) return;
  extents_.add(view.data, view.end, is_grad);
  seen_.emplace_back(view);
}

void Plan::add_task(Row& row, const Views& views, DType dtype, int variant, int operands) {
  const View& param = views[0];
  Group& group = *row.group;
  std::vector<Task>& tasks = row.on_device ? device_tasks_ : tasks_;
  row.task = tasks.size();
  Task& task = tasks.emplace_back(Task{rule_.index,
                                       variant,
                                       dtype,
                                       operands,
                                       nullptr,
                                       {},
                                       param.count,
                                       nullptr,
                                       group.factor,
                                       group.norm,
                                       group.max_norm,
                                       group.averages,
                                       row.average_is_new,
                                       group.average_weight});
  task.next_step = row.step.next;
  if (row.on_device) task.device = param.device.index;
  if (row.step.on_device) task.step = {row.step.at, row.step.is_double, 0};
  if (row.step.on_device || (row.on_device && !group.on_device.empty())) {
    task.device_options = options_on(group, row.param, task.device);
  } else {
    task.constants = checked_constants(group, row.step.next, dtype);
  }
  bool flat = param.dense();
  for (int k = 0; k < operands; ++k) {
    const View& view = views[k];
    task.operands[k] = view.data;
    flat = flat && view.same_strides(param);
    add_range(view, k == 1);
  }
  if (!flat) task.layout = add_layout(views, operands);
}

const void* Plan::constants_for(Group& group, double step, DType dtype) {
  const bool wide = dtype == DType::f64;
  if (folded_group_ != &group || folded_step_ != step || folded_double_ != wide) {
    if (!group.on_device.empty() && !group.complete) {
      group.complete = std::make_unique<Options>();
      rule_.read(GroupReader(group.dict, group.index), *group.complete);
    }
    const Options& options = group.complete ? *group.complete : group.options;
    folded_fits_ = rule_.fold(options, step, dtype, constants_.emplace_back());
    folded_group_ = &group;
    folded_step_ = step;
    folded_double_ = wide;
  }
  return folded_fits_ ? constants_.back().bytes : nullptr;
}

const void* Plan::checked_constants(Group& group, double step, DType dtype) {
  const void* constants = constants_for(group, step, dtype);
  if (constants != nullptr) return constants;
  throw ParamError{PyExc_RuntimeError, "value cannot be converted to type float without overflow: parameter group " +
                                           std::to_string(group.index) + " has " + numbers_of(group.dict) +
                                           ", which give a number beyond float32, in which the arithmetic is,"};
}

const DeviceOptions* Plan::options_on(Group& group, py::handle param, int device) {
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

// A number as float32, or as `copy` if it must be copied, on the parameter's device; kept alive until the step is
// queued.
DeviceNumber Plan::number_on(py::handle param, int device, py::handle number, DType copy) {
  const Torch& torch = Torch::get();
  View view;
  DType dtype;
  if (torch.is_plain(number.ptr()) && torch.view(number.ptr(), view) && view.device.type == dlpack::kCuda &&
      view.device.index == device && view.count == 1 && dtype_of(view, dtype) &&
      (dtype == DType::f32 || dtype == copy) && !is_negated(number)) {
    kept_.push_back(py::reinterpret_borrow<py::object>(number));
  } else {
    kept_.push_back(torch.number_beside(param, number, copy == DType::f64));
    if (!torch.view(kept_.back().ptr(), view) || view.count != 1) {
      throw py::type_error("a tensor with one element was expected, got " + std::string(py::repr(number)));
    }
    dtype = copy;
  }
  return {view.data, dtype == DType::f64, 0};
}

const Layout* Plan::add_layout(const Views& views, int operands) {
  const View& param = views[0];
  std::vector<int64_t>& numbers = layout_numbers_.emplace_back(param.sizes, param.sizes + param.ndim);
  for (int k = 0; k < operands; ++k) numbers.insert(numbers.end(), views[k].strides, views[k].strides + param.ndim);
  return &layouts_.emplace_back(Layout{param.ndim, numbers.data(), numbers.data() + param.ndim});
}

void Plan::clear() {
  const Use use(*this);
  forget();
}

void Plan::forget() {
  gathered_ = left_for_fast_path_ = false;
  rows_.clear();
  kept_.clear();
  fresh_.clear();
  tasks_.clear();
  device_tasks_.clear();
  device_options_.clear();
  skipped_by_host_ = false;
  seen_.clear();
  constants_.clear();
  layouts_.clear();
  layout_numbers_.clear();
  groups_.clear();
  folded_group_ = nullptr;
}

}  // namespace fusedoptim::python
