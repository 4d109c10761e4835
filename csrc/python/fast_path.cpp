// The fast path: parameters that are plain CPU tensors with gradient and state of one layout, which nearly all are.
// Everything is read from torch's own objects (tensor_layout.h), and between the look and the last write no Python code
// and no other thread runs, so that what was seen is what is written to. Whatever is not so, the first step of a
// parameter included, is left to the general path, before anything is written.
#include <algorithm>
#include <cmath>

#include "core/clip.h"
#include "core/sum.h"
#include "cpu/grads.h"
#include "cpu/run.h"
#include "python/general_path.h"
#include "python/tensor_layout.h"

namespace fusedoptim::python {
namespace {

constexpr size_t kRowsAhead = 8;

}  // namespace

bool Plan::fast_step(py::handle optimizer, const cpu::InstructionSet& set, bool zero_grad, const double* grad_scale,
                     bool drop_grads, const std::vector<double>* clips, Measured* measured) {
  all_general_ = Anatomy::get() == nullptr;
  if (all_general_ || in_use_ || !odd_.empty()) return false;
  const Attributes attributes(optimizer);
  const py::object& groups = attributes.groups;
  const py::object& state = attributes.state;
  if (!groups || !PyList_CheckExact(groups.ptr()) || !is_ours(optimizer, attributes)) return false;
  const Use use(*this);
  struct Forgotten {  // however this ends
    Plan& plan;
    ~Forgotten() { plan.forget(); }
  } const forgotten{*this};
  RunOptions options;
  options.threads = Torch::get().threads();
  options.zero_grad = zero_grad;
  options.unscale = grad_scale != nullptr;
  if (options.unscale) options.grad_scale = usual_if_nan(*grad_scale);
  const bool grads_are_written = zero_grad || options.unscale;
  if (!read_groups(groups, clips, measured != nullptr)) return false;

  extents_.begin();
  if (!look(state.ptr(), zero_grad)) return false;
  if (extents_.are_shared(grads_are_written)) return all_general_ = true, false;
  options.backwards = turn_back_ = !turn_back_;
  schedule_.plan(fast_tasks_.data(), fast_count_, options);
  const bool others_run = schedule_.elements() >= kElementsPerRelease * int64_t(fast_count_);
  if (others_run && !own_fast_rows()) return false;
  const auto take = [&] {
    if (measured != nullptr && !clip_fast_rows(options, set, *measured)) return false;
    if (measured != nullptr && measured->is_skipped) return true;
    for (size_t i = 0; i < fast_count_; ++i) write_step(fast_rows_[i].step);
    schedule_.run(set);
    return true;
  };
  if (others_run) {
    const py::gil_scoped_release released;
    if (!take()) return false;
  } else if (!take()) {
    return false;
  }
  if (measured != nullptr && measured->is_skipped) return true;
  finish_fast_rows(grads_are_written);
  if (drop_grads) python::drop_grads(py::reinterpret_borrow<py::iterable>(groups));
  return true;
}

Plan::Attributes::Attributes(py::handle optimizer)
    : all(py::reinterpret_steal<py::object>(PyObject_GenericGetDict(optimizer.ptr(), nullptr))) {
  if (!all) throw py::error_already_set();
  static PyObject* const keys[] = {intern("param_groups").release().ptr(), intern("state").release().ptr()};
  groups = py::reinterpret_borrow<py::object>(PyDict_GetItemWithError(all.ptr(), keys[0]));
  state = py::reinterpret_borrow<py::object>(PyDict_GetItemWithError(all.ptr(), keys[1]));
}

bool Plan::is_ours(py::handle optimizer, const Attributes& attributes) const {
  return attributes.state && is_transparent(attributes.state.ptr()) && has_torchs_parts(optimizer, attributes.all) &&
         !is_watched();
}

bool Plan::is_watched() const {
  for (const py::object& check : mode_checks_) {
    const py::object active = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(check.ptr()));
    if (!active) throw py::error_already_set();
    if (active.is_none() || (PyLong_CheckExact(active.ptr()) && PyLong_AsLong(active.ptr()) == 0)) continue;
    return watch_operations_.is_none() || py::cast<bool>(watch_operations_());
  }
  static PyObject* const name = intern("_current_level").release().ptr();
  PyObject* const level = PyDict_GetItemWithError(forward_ad_.ptr(), name);  // -1 outside of all
  return level != nullptr && PyLong_CheckExact(level) && PyLong_AsLong(level) >= 0;
}

bool Plan::has_torchs_parts(py::handle optimizer, py::handle attributes) const {
  for (const auto& [name, function] : torch_parts_) {
    if (PyDict_GetItemWithError(attributes.ptr(), name.ptr()) != nullptr) return false;
    const py::object found = py::reinterpret_steal<py::object>(
        PyObject_GetAttr(reinterpret_cast<PyObject*>(Py_TYPE(optimizer.ptr())), name.ptr()));
    if (!found) throw py::error_already_set();
    if (!found.is(function)) return false;
  }
  return true;
}

// Only this part may run Python code, as reading a learning rate from a tensor does; no tensor has been looked at yet.
bool Plan::read_groups(py::handle groups, const std::vector<double>* clips, bool may_measure) {
  for (Py_ssize_t g = 0; g < PyList_GET_SIZE(groups.ptr()); ++g) {
    const py::object dict = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(groups.ptr(), g));
    const GroupReader reader(dict, int(g));
    if (!reader.has_list()) return !(all_general_ = true);  // it may yield its parameters only once
    if (!reader.is_transparent() || reader.asks_for_torch()) return false;
    const bool has_settings = reader.may_have_settings();
    Group& group = groups_.emplace_back();
    if (has_settings && clips == nullptr &&
        !(reader.clipping(group.limit, group.skips) && (may_measure || !(group.limit || group.skips))))
      return false;
    group.index = int(g);
    group.params = reader.params();
    group.dict = dict;
    group.factor = reader.flag("maximize") ? -1 : 1;
    if (clips != nullptr) group.factor *= clip_of(*clips, g);
    group.averages = has_settings && reader.average(group.average_weight);
    rule_.read(GroupReader(dict, int(g), &group.on_device), group.options);
    if (!group.on_device.empty()) return false;
  }
  return true;
}

// In the order in which torch takes them. Whether it has found nothing that was not known to be odd.
bool Plan::look(PyObject* state, bool zero_grad) {
  const Torch& torch = Torch::get();
  const Anatomy& anatomy = *Anatomy::get();
  fast_count_ = 0;
  positions_.begin();
  size_t next_odd = 0;
  std::vector<Place> found;
  for (Group& group : groups_) {
    if (group.all_general) continue;
    group.fast_begin = fast_count_;
    PyObject* const* items = PySequence_Fast_ITEMS(group.params.ptr());
    const Py_ssize_t size = PyList_GET_SIZE(group.params.ptr());
    for (Py_ssize_t i = 0; i < size; ++i) {
      const Place place{group.index, i, items[i]};
      if (!odd_.empty() && is_odd(place, next_odd)) continue;
      fetch_ahead(fast_count_ + kRowsAhead);
      if (!torch.is_plain(items[i])) {
        found.push_back(place);
        continue;
      }
      const Body param = anatomy.body(items[i]), grad = anatomy.grad(param);
      if (!grad) continue;
      if (fast_count_ == fast_rows_.size()) {
        fast_rows_.emplace_back();
        fast_tasks_.emplace_back();
      }
      FastRow& row = fast_rows_[fast_count_];
      row.object = items[i];
      row.param = param;
      row.grad = grad;
      if (look_at(group, row, fast_tasks_[fast_count_], state, zero_grad) == nullptr) {
        ++fast_count_;
      } else {
        found.push_back(place);
      }
    }
    group.fast_end = fast_count_;
  }
  if (found.empty()) return true;
  odd_.insert(odd_.end(), found.begin(), found.end());
  std::sort(odd_.begin(), odd_.end());
  return false;
}

bool Plan::is_odd(const Place& place, size_t& next) const {
  while (next < odd_.size() && odd_[next] < place) ++next;
  return next < odd_.size() && odd_[next] == place;
}

// What the last step read in a later row is probably what this one will: a hint, to which no harm can be.
void Plan::fetch_ahead(size_t row) const {
  if (row >= fast_rows_.size()) return;
  const Anatomy& anatomy = *Anatomy::get();
  const FastRow& then = fast_rows_[row];
  __builtin_prefetch(then.object);
  anatomy.prefetch(then.param);
  anatomy.prefetch(then.grad);
  for (int k = 0; k <= kMaxStates; ++k) {
    __builtin_prefetch(then.entries[k]);
    anatomy.prefetch(then.bodies[k]);
  }
}

namespace {

// Whether autograd follows the gradient of a plain parameter, as torch itself says of one that autograd has met: a
// view, of a bucket of all gradients for one. `grad`: its object, if it has one yet.
bool is_followed(PyObject* param, PyObject* grad) {
  const Torch& torch = Torch::get();
  if (torch.runs_function_modes()) return true;  // it would run Python code, which could exchange what was seen
  if (grad != nullptr) return torch.requires_grad(grad);
  const NoCollection no_collection;
  return torch.requires_grad(torch.grad(param));
}

}  // namespace

const char* Plan::look_at(Group& group, FastRow& row, Task& task, PyObject* state, bool zero_grad) {
  const Torch& torch = Torch::get();
  const Anatomy& anatomy = *Anatomy::get();
  DType dtype;
  if (!anatomy.is_ordinary(row.param)) return "it is not a plain strided CPU tensor of up to five dimensions";
  if (!anatomy.is_ordinary(row.grad)) return "its gradient is not a plain strided CPU tensor of up to five dimensions";
  if (!anatomy.dtype(row.param, dtype)) return "its dtype is not float64, float32, bfloat16 or float16";
  if (!anatomy.same_geometry(row.param, row.grad)) return "its gradient has another shape, dtype or strides";
  if (PyObject* seen = anatomy.object(row.grad); seen != nullptr && !torch.is_plain(seen))
    return "its gradient is a tensor subclass";
  if (zero_grad && anatomy.may_be_followed(row.grad) && is_followed(row.object, anatomy.object(row.grad)))
    return "autograd follows its gradient";
  if (!anatomy.is_row_major(row.param) && !is_dense(row.param)) return "its elements do not fill one stretch of memory";

  const int variant = rule_.variant(group.options, dtype, false), states = states_of(group, variant);
  const int64_t count = anatomy.count(row.param), item_size = int64_t(size_of(dtype)), bytes = count * item_size;
  task.rule = rule_.index;
  task.variant = variant;
  task.dtype = dtype;
  task.operand_count = 2 + states;
  task.count = count;
  task.layout = nullptr;
  task.factor = group.factor;
  task.averages = group.averages;
  task.average_weight = group.average_weight;
  const auto add = [&](int k, Body tensor) {
    char* data = anatomy.data(tensor, item_size);
    if (data == nullptr && bytes > 0) return false;
    task.operands[k] = data;
    extents_.add(data, data + bytes, k == 1);
    return true;
  };
  if (!add(0, row.param) || !add(1, row.grad)) return "its memory or its gradient's is not plainly there";
  if (states > 0 || rule_.counts_steps) {
    PyObject* own = positions_.find(state, fast_count_, row.object);
    if (own == nullptr) return "it has no state yet";
    if (!is_known_dict(own)) return "its state is not a dict";
    if (!find_named(own, group, states, row.entries)) return "its state is not complete";
    for (int k = 0; k < states; ++k) {
      if (!torch.is_plain(row.entries[k])) return "its state is not a plain tensor";
      const Body tensor = row.bodies[k] = anatomy.body(row.entries[k]);
      if (!anatomy.is_ordinary(tensor)) return "its state is not a plain strided CPU tensor";
      if (!anatomy.same_geometry(row.param, tensor)) return "its state has another shape, dtype or strides";
      if (!add(2 + k, tensor)) return "the memory of its state is not plainly there";
    }
    if (rule_.counts_steps) {
      if (const char* reason = look_at_step(row.entries[states], row.bodies[states], row.step)) return reason;
    }
  }
  task.constants = constants_for(group, row.step.next, dtype);
  return task.constants == nullptr ? "its options are too large for its arithmetic" : nullptr;
}

const char* Plan::look_at_step(PyObject* object, Body& tensor, Step& out) {
  const Anatomy& anatomy = *Anatomy::get();
  DType dtype;
  if (!Torch::get().is_plain(object)) return "its step is not a plain tensor";
  tensor = anatomy.body(object);
  if (!anatomy.is_ordinary(tensor) || anatomy.count(tensor) != 1 || !anatomy.dtype(tensor, dtype) ||
      (dtype != DType::f32 && dtype != DType::f64))
    return "its step is not one float32 or float64 on the CPU";
  const int64_t size = int64_t(size_of(dtype));
  out.at = anatomy.data(tensor, size);
  if (out.at == nullptr) return "the memory of its step is not plainly there";
  out.is_double = dtype == DType::f64;
  out.on_device = false;
  extents_.add(out.at, out.at + size, false);
  read_step(out);
  out.next = out.seen;
  return out.next <= 0 ? "its step is negative" : nullptr;
}

// Dicts are walked and not asked, since what compares their keys may be Python code.
PyObject* const* Plan::names_of(Group& group, int states) const {
  if (group.named != states) {
    for (int k = 0; k < states; ++k) group.names[k] = names_[size_t(k)].ptr();
    if (group.averages) group.names[states - 1] = average_name_.ptr();
    if (rule_.counts_steps) group.names[states] = names_.back().ptr();
    group.named = states;
  }
  return group.names;
}

bool Plan::find_named(PyObject* own, Group& group, int states, PyObject** entries) const {
  const int wanted = states + (rule_.counts_steps ? 1 : 0);
  PyObject* const* const names = names_of(group, states);
  std::fill(entries, entries + wanted, nullptr);
  int found = 0;
  PyObject *key, *value;
  for (Py_ssize_t at = 0; PyDict_Next(own, &at, &key, &value);) {
    int k = 0;
    while (k < wanted && key != names[k]) ++k;
    if (k == wanted) {  // another name, or one that was read from a file
      for (k = 0; k < wanted && !(PyUnicode_CheckExact(key) && PyUnicode_Compare(key, names[k]) == 0);) ++k;
      if (k == wanted) continue;
    }
    entries[k] = value;
    if (++found == wanted) return true;
  }
  return false;
}

bool Plan::is_dense(Body tensor) {
  const Anatomy& anatomy = *Anatomy::get();
  View view{};
  view.ndim = int(anatomy.ndim(tensor));
  view.sizes = anatomy.sizes(tensor);
  view.strides = anatomy.strides(tensor);
  int64_t last = 0;
  for (int d = 0; d < view.ndim; ++d) last += (view.sizes[d] - 1) * view.strides[d];
  return anatomy.count(tensor) == last + 1 && view.disjoint();
}

// Keeps alive what the step writes and reads while other threads run. Torch's getter makes Python objects of gradients
// that have none, and runs a TorchFunctionMode if one is active, which might exchange what was seen: then false.
bool Plan::own_fast_rows() {
  const Torch& torch = Torch::get();
  const Anatomy& anatomy = *Anatomy::get();
  if (torch.runs_function_modes()) return !(all_general_ = true);
  const NoCollection no_collection;  // which making objects may start
  for (size_t i = 0; i < fast_count_; ++i) {
    const FastRow& row = fast_rows_[i];
    kept_.push_back(py::reinterpret_borrow<py::object>(row.object));
    kept_.push_back(torch.grad(row.object));
    if (!torch.is_plain(kept_.back().ptr()) || !(anatomy.body(kept_.back().ptr()) == row.grad))
      return !(all_general_ = true);
    for (int k = 0; k < fast_tasks_[i].operand_count - 2; ++k) {
      kept_.push_back(py::reinterpret_borrow<py::object>(row.entries[k]));
    }
    if (rule_.counts_steps) {
      kept_.push_back(py::reinterpret_borrow<py::object>(row.entries[fast_tasks_[i].operand_count - 2]));
    }
  }
  return true;
}

bool Plan::clip_fast_rows(const RunOptions& options, const cpu::InstructionSet& set, Measured& measured) {
  const auto any = [&](const auto& test) { return std::any_of(groups_.begin(), groups_.end(), test); };
  const bool skips = measured.may_skip || any([](const Group& group) { return group.skips; });
  measured.is_clipped = any([](const Group& group) { return group.limit.has_value(); });
  if (!measured.is_clipped && !skips) return true;
  const Anatomy& anatomy = *Anatomy::get();
  // The norm is of all gradients whose groups have a limit. Whether a step is skipped is up to the others as well.
  std::vector<cpu::Grad> grads;
  size_t limited = 0;
  for (const bool has_limit : {true, false}) {
    for (const Group& group : groups_) {
      if (group.limit.has_value() != has_limit || !(has_limit || skips)) continue;
      for (size_t i = group.fast_begin; i < group.fast_end; ++i) {
        const Task& task = fast_tasks_[i];
        if (!anatomy.is_row_major(fast_rows_[i].grad)) return false;  // elements are added in the order of rows
        grads.push_back({task.operands[1], task.count, task.dtype, nullptr});
        if (has_limit) measured.dtypes[size_t(task.dtype)] = true;
      }
    }
    if (has_limit) limited = grads.size();
  }
  std::vector<double> sums(grads.size());
  cpu::sum_squares(grads, options.unscale ? &options.grad_scale : nullptr, options.threads, set, sums.data());
  const double squares = ordered_sum(sums.data(), int64_t(limited));
  const double rest = ordered_sum(sums.data() + limited, int64_t(sums.size() - limited));
  if (!std::isfinite(squares) || !std::isfinite(rest)) {
    const auto is_wide = [](const cpu::Grad& grad) { return grad.dtype == DType::f64; };
    if (std::any_of(grads.begin(), grads.end(), is_wide)) return false;
    measured.is_skipped = skips;
  }
  measured.norm = std::sqrt(squares);
  for (const Group& group : groups_) {
    if (!group.limit) continue;
    const double clip = usual_if_nan(clip_coefficient(measured.norm, *group.limit));
    for (size_t i = group.fast_begin; i < group.fast_end; ++i) fast_tasks_[i].factor *= clip;
  }
  return true;
}

void Plan::finish_fast_rows(bool grads_are_written) {
  const Anatomy& anatomy = *Anatomy::get();
  for (size_t i = 0; i < fast_count_; ++i) {
    anatomy.bump_version(fast_rows_[i].param);
    if (grads_are_written) anatomy.bump_version(fast_rows_[i].grad);
  }
}

py::list Plan::explain(py::iterable groups, py::object state, py::object new_state) {
  std::vector<Reason> reasons;
  struct Noting {
    Plan& plan;
    ~Noting() {
      plan.reasons_ = nullptr;
      if (!plan.in_use_) plan.forget();
    }
  } const noting{*this};
  reasons_ = &reasons;
  all_general_ = true;
  gather(std::move(groups), state, std::move(new_state), false);
  const Anatomy* anatomy = Anatomy::get();
  const bool is_shared = extents_.are_shared(false);
  FastRow row;
  Task task;
  py::list found;
  for (const Reason& each : reasons) {
    const auto group = std::find_if(groups_.begin(), groups_.end(), [&](Group& g) { return g.index == each.group; });
    const char* why_not_fast = "this is no release of torch that the fast path is used on";
    if (anatomy != nullptr && group != groups_.end()) {
      row.object = PyList_GET_ITEM(group->params.ptr(), each.index);
      why_not_fast = "it is no plain tensor";
      if (Torch::get().is_plain(row.object)) {
        row.param = anatomy->body(row.object);
        row.grad = anatomy->grad(row.param);
        positions_.begin();
        fast_count_ = 0;
        why_not_fast = look_at(*group, row, task, state.ptr(), false);
        if (why_not_fast == nullptr && is_shared) why_not_fast = "tensors of the step share memory";
      }
    }
    const bool is_error = !each.error.empty();
    found.append(py::make_tuple(each.group, each.index,
                                is_error                  ? "nobody"
                                : each.why != nullptr     ? "torch"
                                : why_not_fast != nullptr ? "general path"
                                                          : "fast path",
                                is_error                  ? each.error
                                : each.why != nullptr     ? each.why
                                : why_not_fast != nullptr ? why_not_fast
                                                          : ""));
  }
  return found;
}

// After a step, what has become ordinary by it, as a parameter is after its first.
void Plan::forget_odd(PyObject* state, bool zero_grad) {
  const Anatomy& anatomy = *Anatomy::get();
  positions_.begin();  // for new state has come
  FastRow row;
  Task task;
  size_t next = 0;
  const auto is_ordinary = [&](Group& group, PyObject* param) {
    if (!Torch::get().is_plain(param)) return false;
    row.object = param;
    row.param = anatomy.body(param);
    row.grad = anatomy.grad(row.param);
    return row.grad && look_at(group, row, task, state, zero_grad) == nullptr;
  };
  std::vector<Place> left;
  for (const Place& place : odd_) {
    while (next < groups_.size() && groups_[next].index < place.group) ++next;
    const bool has_group = next < groups_.size() && groups_[next].index == place.group;
    PyObject* const params = has_group ? groups_[next].params.ptr() : nullptr;
    if (params == nullptr || place.index >= PyList_GET_SIZE(params)) continue;
    PyObject* const param = PyList_GET_ITEM(params, place.index);
    if (param == place.param && !is_ordinary(groups_[next], param)) left.push_back(place);
  }
  odd_.swap(left);
}

}  // namespace fusedoptim::python
