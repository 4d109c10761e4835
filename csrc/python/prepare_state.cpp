// A parameter's own state on the general path: found, or made, and its step count read.
#include <algorithm>

#include "python/general_path.h"

namespace fusedoptim::python {

bool GeneralPath::find_or_make_state(PreparedParam& row, PyObject* state, py::handle new_state, DType dtype,
                                     int& variant) {
  Group& group = *row.group;
  PyObject** const entries = row.entries;
  const int average = row.states - 1;
  find_entries(state, group, row.states, entries);
  row.average_is_new = group.averages && entries[average] == nullptr;
  row.is_new = is_new(group, entries, row.states);
  if (!row.is_new && !row.average_is_new) return false;
  py::object& made = new_state_[row.param.ptr()];
  const bool python_ran = !made;
  if (!made) made = new_state(row.param, group.dict);
  if (row.is_new) {
    PyObject* const old_average = group.averages ? entries[average] : nullptr;
    row.new_state = made;
    find_entries(row.new_state.ptr(), group, row.states, entries);
    if (old_average != nullptr) {  // which goes on
      row.new_state = made.attr("copy")();
      row.new_state.attr("pop")(average_name_);
      entries[average] = old_average;
    }
    const int next_variant = variant;  // of as many states
    variant = rule_.variant(group.options, dtype, true);
    if (variant != next_variant) skipped_by_host_ = true;  // one that is skipped must be the first again
  } else {
    py::dict alone;
    alone[average_name_] = kept_.emplace_back(made[average_name_]);
    row.new_state = alone;
    entries[average] = kept_.back().ptr();
  }
  if (row.average_is_new) skipped_by_host_ = true;
  return python_ran;
}

void GeneralPath::find_entries(PyObject* state, Group& group, int count, PyObject** entries) {
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

bool GeneralPath::is_new(const Group& group, PyObject* const* entries, int count) const {
  const int all = count + (rule_.counts_steps ? 1 : 0), average = group.averages ? count - 1 : -1;
  if (all == (average >= 0 ? 1 : 0)) return false;  // there is nothing else
  for (int k = 0; k < all; ++k) {
    if (k != average && entries[k] != nullptr) return false;
  }
  return true;
}

const char* GeneralPath::prepare_step_count(PyObject* tensor, const TensorView& param, StepCount& out) {
  TensorView view;
  if (const char* reason = read_step_count(tensor, param, view)) return reason;
  out.at = view.data;
  out.is_double = view.dtype == DType::f64;
  out.on_device = !view.is_on_cpu();
  if (out.on_device) return nullptr;
  skipped_by_host_ = true;
  add_range(view, false);  // one count may serve several parameters
  out.read();
  out.next = out.seen;
  if (!(out.next <= 0)) return nullptr;  // NaN makes NaN
  const std::string count = py::str(py::float_(out.next - 1));
  throw ParamError{PyExc_RuntimeError,
                   "step must be at least 0, got " + count + ": set it right in the state of this parameter,"};
}

}  // namespace fusedoptim::python
