// A parameter's own state on the general path: found, or made, and its step count read.
#include <algorithm>

#include "python/general_path.h"

namespace fusedoptim::python {

bool GeneralPath::find_or_make_state(PreparedParam& row, PyObject* state, py::handle new_state, DType dtype,
                                     int& variant) {
  Group& group = *row.group;
  const Owned& owned = row.owned;
  PyObject** const entries = row.entries;
  if (find_entries(state, group, owned, entries)) return false;
  row.is_new = is_new(owned, entries);
  for (int k = 0; k < owned.named; ++k) {
    row.is_late[k] = entries[k] == nullptr && may_be_late(owned, k);
    row.any_late = row.any_late || row.is_late[k];
  }
  if (row.any_late) skipped_by_host_ = true;
  if (!row.is_new && !row.any_late) return false;
  py::object& made = new_state_[row.param.ptr()];
  const bool python_ran = !made;
  if (!made) made = new_state(row.param, group.dict);
  PyObject* const* const names = names_of(group, owned);
  if (!row.is_new) {
    py::dict late;
    for (int k = 0; k < owned.named; ++k) {
      if (!row.is_late[k]) continue;
      late[names[k]] = kept_.emplace_back(made[py::handle(names[k])]);
      entries[k] = kept_.back().ptr();
    }
    row.new_state = late;
    return python_ran;
  }
  row.new_state = made;
  PyObject* before[kMaxEntries];
  std::copy(entries, entries + owned.named, before);
  find_entries(made.ptr(), group, owned, entries);
  for (int k = 0; k < owned.named; ++k) {
    if (before[k] == nullptr) continue;  // else it goes on
    if (row.new_state.is(made)) row.new_state = made.attr("copy")();
    row.new_state.attr("pop")(py::handle(names[k]));
    entries[k] = before[k];
  }
  const int next_variant = variant;  // of as many states
  variant = rule_.variant(group.options, dtype, true);
  if (variant != next_variant) skipped_by_host_ = true;  // one that is skipped must be the first again
  return python_ran;
}

bool GeneralPath::find_entries(PyObject* state, Group& group, const Owned& owned, PyObject** entries) {
  if (state != nullptr && !PyDict_Check(state)) throw ParamError{PyExc_TypeError, "the state must be a dict"};
  PyObject* const* const names = names_of(group, owned);
  bool all = true;
  for (int k = 0; k < owned.named; ++k) {
    PyObject* found = state == nullptr ? nullptr : PyDict_GetItemWithError(state, names[k]);
    if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
    entries[k] = found == Py_None ? nullptr : found;
    // Python code or another thread may take it out.
    if (entries[k] != nullptr) {
      kept_.push_back(py::reinterpret_borrow<py::object>(found));
    } else {
      all = false;
    }
  }
  return all;
}

bool GeneralPath::may_be_late(const Owned& owned, int entry) const {
  return (entry >= owned.states && entry < owned.tensors) ||
         (owned.counts && !rule_.counts_steps && entry == owned.step_at());
}

bool GeneralPath::is_new(const Owned& owned, PyObject* const* entries) const {
  bool is_any = false;
  for (int k = 0; k < owned.named; ++k) {
    if (may_be_late(owned, k)) continue;
    if (entries[k] != nullptr) return false;
    is_any = true;
  }
  return is_any;
}

const char* GeneralPath::read_scales(PreparedParam& row, PyObject* state, const LocalPair& local, const Views& views) {
  for (int k = 0; k < row.owned.states; ++k) row.in_8bit |= unsigned(views[2 + k].dtype == DType::u8) << k;
  if (row.in_8bit == 0) return nullptr;
  PyObject* const own = row.is_new ? row.new_state.ptr() : state;
  if (!find_scales(own, row.owned, row.in_8bit, row.entries))
    throw ParamError{PyExc_KeyError, "a state in 8 bits has no scale"};
  const TensorView& param = views[0];
  const int64_t blocks = param.count == 0 ? 0 : blocks_of(param.ndim, param.sizes, param.count).of(param.count);
  int at = row.owned.named;
  for (int k = 0; k < row.owned.states; ++k) {
    if ((row.in_8bit >> k & 1) == 0) continue;
    PyObject* entry = row.entries[at++];
    kept_.push_back(py::reinterpret_borrow<py::object>(entry));
    PyObject* const name = scale_names_[size_t(row.owned.state(k))].ptr();
    if (const char* reason = open_states(local, &name, 1, &entry, kept_)) return reason;
    TensorView& view = scale_views_[k];
    if (!view.read(entry) || view.dtype != DType::f32 || !view.row_major || view.count != blocks ||
        !view.same_device(param))
      return "a scale of its state is not float32 in the order of rows, one for each block";
    for (int other = 0; other < 2 + row.owned.tensors; ++other) {
      if (view.overlaps(views[other])) return "a scale of its state shares memory with it, its gradient or other state";
    }
  }
  return nullptr;
}

const char* GeneralPath::prepare_numbers(PyObject* const* entries, const TensorView& param, PreparedParam& row) {
  const Owned& owned = row.owned;
  StepCount& step = row.numbers.step;
  if (owned.counts) {
    const int at = owned.step_at();
    if (const char* reason = prepare_number(step_name_.ptr(), entries[at], param, step)) return reason;
    step.next = step.seen;
    if (step.is_on_host() && step.next <= 0) {  // NaN makes NaN
      const std::string count = py::str(py::float_(step.next - 1));
      throw ParamError{PyExc_RuntimeError,
                       "step must be at least 0, got " + count + ": set it right in the state of this parameter,"};
    }
  }
  for (int i = 0; i < owned.numbers; ++i) {
    StateNumber& number = row.numbers.others[i];
    PyObject* const entry = entries[owned.number_at(i)];
    if (const char* reason = prepare_number(number_names_[size_t(i)].ptr(), entry, param, number)) return reason;
    if (owned.counts && number.on_device != step.on_device)
      return "its step and the numbers beside it lie on different devices";
  }
  return nullptr;
}

template <class Number>
const char* GeneralPath::prepare_number(PyObject* name, PyObject* tensor, const TensorView& param, Number& out) {
  TensorView view;
  if (const char* reason = read_state_number(name, tensor, param, view)) return reason;
  out.at = view.data;
  out.is_double = view.dtype == DType::f64;
  out.on_device = !view.is_on_cpu();
  if (out.on_device) return nullptr;
  skipped_by_host_ = true;
  add_range(view, false);  // one number may serve several parameters
  out.read();
  return nullptr;
}

}  // namespace fusedoptim::python
