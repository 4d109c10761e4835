// The step of ordinary tensors, which is nearly every step: everything is read from torch's own objects (anatomy.h), in
// one call from the first look to the last write, so that no Python code and no other thread comes between. Whatever is
// out of the ordinary, the first step of a parameter included, is left to gather and commit, before anything is
// written.
#include <algorithm>

#include "cpu/run.h"
#include "python/anatomy.h"
#include "python/plan.h"

namespace fusedoptim::python {
namespace {

// From so many elements a tensor on, the Python object of a gradient, which is what keeps it while other threads run,
// costs nothing that counts; below, the whole step is too short to let others run.
constexpr int64_t kElementsPerRelease = 4096;

constexpr size_t kRowsAhead = 8;

}  // namespace

bool Plan::step_directly(py::handle groups, py::handle state, const cpu::InstructionSet& set, int threads,
                         bool zero_grad, const double* grad_scale, bool drop_grads) {
  if (Anatomy::get() == nullptr || in_use_ || !PyList_CheckExact(groups.ptr()) || !PyDict_Check(state.ptr()))
    return false;
  const Use use(*this);
  struct Forgotten {  // however this ends
    Plan& plan;
    ~Forgotten() { plan.forget(); }
  } const forgotten{*this};
  extents_.begin();
  positions_.begin();
  RunOptions options;
  options.threads = threads;
  options.zero_grad = zero_grad;
  options.unscale = grad_scale != nullptr;
  if (options.unscale) options.grad_scale = usual_if_nan(*grad_scale);
  const bool grads_are_written = zero_grad || options.unscale;
  if (!read_groups(groups) || !look_directly(state.ptr(), grads_are_written) || extents_.are_shared(grads_are_written))
    return false;
  options.backwards = turn_back_ = !turn_back_;
  schedule_.plan(direct_tasks_.data(), direct_count_, options);

  const bool others_run = schedule_.elements() >= kElementsPerRelease * int64_t(direct_count_);
  if (others_run) keep_direct();
  for (size_t i = 0; i < direct_count_; ++i) write_step(direct_[i].step);
  if (others_run) {
    const py::gil_scoped_release released;
    schedule_.run(set);
  } else {
    schedule_.run(set);
  }
  const Anatomy& anatomy = *Anatomy::get();
  for (size_t i = 0; i < direct_count_; ++i) {
    anatomy.bump_version(direct_[i].param);
    if (grads_are_written) anatomy.bump_version(direct_[i].grad);
  }
  if (drop_grads) python::drop_grads(py::reinterpret_borrow<py::iterable>(groups));
  return true;
}

// Only this part may run Python code, as reading a learning rate from a tensor does; no tensor has been looked at yet.
bool Plan::read_groups(py::handle groups) {
  for (Py_ssize_t g = 0; g < PyList_GET_SIZE(groups.ptr()); ++g) {
    const py::object dict = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(groups.ptr(), g));
    if (!Torch::get().is_harmless_group(dict.ptr())) return false;
    const GroupReader reader(dict);
    if (reader.asks_for_torch()) return false;
    Group& group = groups_.emplace_back();
    group.params = reader.list("params");
    if (!group.params) return false;
    group.dict = dict;
    group.maximize = reader.flag("maximize");
    rule_.read(GroupReader(dict, &group.on_device), group.options);
    if (!group.on_device.empty()) return false;
  }
  return true;
}

bool Plan::look_directly(PyObject* state, bool grads_are_written) {
  const Torch& torch = Torch::get();
  const Anatomy& anatomy = *Anatomy::get();
  direct_count_ = 0;
  for (Group& group : groups_) {
    PyObject* const* items = PySequence_Fast_ITEMS(group.params.ptr());
    const Py_ssize_t size = PyList_GET_SIZE(group.params.ptr());
    for (Py_ssize_t i = 0; i < size; ++i) {
      fetch_ahead(direct_count_ + kRowsAhead);
      if (!torch.is_plain(items[i])) return false;
      const Body param = anatomy.body(items[i]), grad = anatomy.grad(param);
      if (!grad) continue;
      if (direct_count_ == direct_.size()) {
        direct_.emplace_back();
        direct_tasks_.emplace_back();
      }
      Direct& row = direct_[direct_count_];
      row.object = items[i];
      row.param = param;
      row.grad = grad;
      if (!look_at(group, row, direct_tasks_[direct_count_], state, grads_are_written)) return false;
      ++direct_count_;
    }
  }
  return true;
}

// What the last step read in a later row is probably what this one will: a hint, to which no harm can be.
void Plan::fetch_ahead(size_t row) const {
  if (row >= direct_.size()) return;
  const Anatomy& anatomy = *Anatomy::get();
  const Direct& then = direct_[row];
  __builtin_prefetch(then.object);
  anatomy.prefetch(then.param);
  anatomy.prefetch(then.grad);
  for (PyObject* entry : then.entries) __builtin_prefetch(entry);
  for (Body body : then.bodies) anatomy.prefetch(body);
}

bool Plan::look_at(Group& group, Direct& row, Task& task, PyObject* state, bool grads_are_written) {
  const Torch& torch = Torch::get();
  const Anatomy& anatomy = *Anatomy::get();
  DType dtype;
  if (!anatomy.is_ordinary(row.param) || !anatomy.is_ordinary(row.grad) ||
      !anatomy.same_geometry(row.param, row.grad) || !anatomy.dtype(row.param, dtype))
    return false;
  if (PyObject* seen = anatomy.object(row.grad); seen != nullptr && !torch.is_plain(seen)) return false;
  if (grads_are_written && anatomy.may_be_followed(row.grad)) return false;
  if (!anatomy.is_row_major(row.param) && !is_dense(row.param)) return false;

  const int variant = rule_.variant(group.options, dtype, false), states = rule_.states_of(variant);
  const int64_t count = anatomy.count(row.param), item_size = int64_t(size_of(dtype)), bytes = count * item_size;
  task.rule = rule_.index;
  task.variant = variant;
  task.dtype = dtype;
  task.operand_count = 2 + states;
  task.count = count;
  task.maximize = group.maximize;
  const auto add = [&](int k, Body tensor) {
    char* data = anatomy.data(tensor, item_size);
    if (data == nullptr && bytes > 0) return false;
    task.operands[k] = data;
    extents_.add(data, data + bytes, k == 1);
    return true;
  };
  if (!add(0, row.param) || !add(1, row.grad)) return false;
  if (states > 0 || rule_.counts_steps) {
    PyObject* own = positions_.find(state, direct_count_, row.object);
    if (own == nullptr || !PyDict_CheckExact(own) || !find_named(own, states, row.entries)) return false;
    for (int k = 0; k < states; ++k) {
      if (!torch.is_plain(row.entries[k])) return false;
      const Body tensor = row.bodies[k] = anatomy.body(row.entries[k]);
      if (!anatomy.is_ordinary(tensor) || !anatomy.same_geometry(row.param, tensor) || !add(2 + k, tensor))
        return false;
    }
    if (rule_.counts_steps && !look_at_step(row.entries[states], row.bodies[states], row.step)) return false;
  }
  task.constants = constants_for(group, row.step.next, dtype);
  return true;
}

bool Plan::look_at_step(PyObject* object, Body& tensor, Step& out) {
  const Anatomy& anatomy = *Anatomy::get();
  DType dtype;
  if (!Torch::get().is_plain(object)) return false;
  tensor = anatomy.body(object);
  if (!anatomy.is_ordinary(tensor) || anatomy.count(tensor) != 1 || !anatomy.dtype(tensor, dtype) ||
      (dtype != DType::f32 && dtype != DType::f64))
    return false;
  const int64_t size = int64_t(size_of(dtype));
  out.at = anatomy.data(tensor, size);
  if (out.at == nullptr) return false;
  out.is_double = dtype == DType::f64;
  extents_.add(out.at, out.at + size, false);
  read_step(out);
  return true;
}

// Dicts are walked and not asked, since what compares their keys may be Python code.
bool Plan::find_named(PyObject* own, int states, PyObject** entries) const {
  const int wanted = states + (rule_.counts_steps ? 1 : 0);
  const auto name = [&](int k) { return (k < states ? names_[k] : names_.back()).ptr(); };
  std::fill(entries, entries + wanted, nullptr);
  int found = 0;
  PyObject *key, *value;
  for (Py_ssize_t at = 0; PyDict_Next(own, &at, &key, &value);) {
    int k = 0;
    while (k < wanted && key != name(k)) ++k;
    if (k == wanted) {  // another name, or one that was read from a file
      for (k = 0; k < wanted && !(PyUnicode_CheckExact(key) && PyUnicode_Compare(key, name(k)) == 0);) ++k;
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

// Keeps alive what the step writes and reads while other threads run.
void Plan::keep_direct() {
  const int collecting = PyGC_Disable();  // a collection, which making objects may start, would run Python code
  for (size_t i = 0; i < direct_count_; ++i) {
    const Direct& row = direct_[i];
    kept_.push_back(py::reinterpret_borrow<py::object>(row.object));
    kept_.push_back(Torch::get().grad(row.object));
    for (int k = 0; k < direct_tasks_[i].operand_count - 2; ++k) {
      kept_.push_back(py::reinterpret_borrow<py::object>(row.entries[k]));
    }
  }
  if (collecting) PyGC_Enable();
}

}  // namespace fusedoptim::python
