#include "python/group_reader.h"

#include <stdexcept>
#include <string>
#include <utility>

#include "core/nan.h"
#include "python/mappings.h"
#include "python/tensor_view.h"
#include "python/torch.h"

namespace fusedoptim::python {
namespace {

// The interned string for a literal, made once. Literals are told apart by their addresses.
PyObject* key_of(const char* name) {
  constexpr size_t kSlots = 64;
  static std::pair<const char*, PyObject*> known[kSlots];
  size_t slot = reinterpret_cast<uintptr_t>(name) % kSlots;
  for (size_t tries = 0; tries < kSlots; ++tries, slot = (slot + 1) % kSlots) {
    if (known[slot].first == name) return known[slot].second;
    if (known[slot].first != nullptr) continue;
    PyObject* key = PyUnicode_InternFromString(name);
    if (key == nullptr) throw py::error_already_set();
    known[slot] = {name, key};
    return key;
  }
  throw std::length_error("raise kSlots: it is less than the options of all rules");
}

// A tensor without its elements: it may be a long one, and torch's repr ends the process where its memory was freed.
std::string format_value(py::handle value) {
  if (!Torch::get().is_plain(value.ptr())) return py::repr(value);
  return "a tensor of shape " + std::string(py::str(py::tuple(py::list(value.attr("shape")))));
}

double to_number(py::handle value, const char* name) {
  // A tensor that requires grad warns when it is made a float, but not when it is asked for its item.
  py::object plain = py::reinterpret_borrow<py::object>(value);
  if (!PyFloat_Check(value.ptr()) && !PyLong_Check(value.ptr()) && py::hasattr(value, "item")) {
    plain = py::reinterpret_steal<py::object>(PyObject_CallMethod(value.ptr(), "item", nullptr));
  }
  const double result = plain ? PyFloat_AsDouble(plain.ptr()) : -1.0;
  if (result == -1.0 && PyErr_Occurred()) {
    if (!PyErr_ExceptionMatches(PyExc_Exception)) throw py::error_already_set();  // such as KeyboardInterrupt
    PyErr_Clear();
    throw py::type_error(std::string(name) + " must be a number or a tensor with one element, got " +
                         format_value(value));
  }
  return canonicalize_nan(result);
}

}  // namespace

// Owned, for reading a value may run Python code that takes it out of the group.
py::object GroupReader::find(const char* name) const {
  PyObject* const key = key_of(name);
  if (is_transparent_) {
    PyObject* found = PyDict_GetItemWithError(group_.ptr(), key);
    if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
    if (found != nullptr || PyDict_CheckExact(group_.ptr())) return py::reinterpret_borrow<py::object>(found);
  }
  PyObject* found = PyObject_GetItem(group_.ptr(), key);
  if (found == nullptr) {
    if (!PyErr_ExceptionMatches(PyExc_KeyError)) throw py::error_already_set();
    PyErr_Clear();
  }
  return py::reinterpret_steal<py::object>(found);
}

py::object GroupReader::setting(const char* name) const {
  PyObject* const key = key_of(name);
  if (is_transparent_) {
    PyObject* const found = PyDict_GetItemWithError(group_.ptr(), key);
    if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
    return py::reinterpret_borrow<py::object>(found);
  }
  const int has = PySequence_Contains(group_.ptr(), key);
  if (has < 0) throw py::error_already_set();
  return has != 0 ? find(name) : py::object();
}

py::object GroupReader::item(const char* name) const {
  py::object found = find(name);
  if (!found) {
    const std::string index = std::to_string(index_);
    throw py::key_error("parameter group " + index + " has no '" + name + "'; set optimizer.param_groups[" + index +
                        "]['" + name + "']");
  }
  return found;
}

void GroupReader::operator()(const char* name, double& out) const { out = number(item(name), name, nullptr, false); }

void GroupReader::operator()(const char* name, double& out, OnDevice) const {
  out = number(item(name), name, &out, true);
}

void GroupReader::operator()(const char* name, double& first, double& second) const {
  several(name, {&first, &second}, false, false);
}

void GroupReader::operator()(const char* name, double& first, double& second, OnDevice) const {
  several(name, {&first, &second}, true, false);
}

void GroupReader::operator()(const char* name, double& first, double& second, AnyPair) const {
  several(name, {&first, &second}, false, true);
}

void GroupReader::operator()(const char* name, double& first, double& second, double& third) const {
  several(name, {&first, &second, &third}, false, false);
}

void GroupReader::several(const char* name, std::initializer_list<double*> places, bool may_stay, bool is_any) const {
  const py::object found = item(name);
  if (!py::isinstance<py::sequence>(found) || py::len(found) != places.size()) {
    throw py::type_error(std::string(name) + " must be " + (places.size() == 2 ? "a pair of" : "three") +
                         " numbers, got " + format_value(found));
  }
  const py::sequence all = py::reinterpret_borrow<py::sequence>(found);
  size_t position = 0;
  for (double* const place : places) *place = number(py::object(all[position++]), name, place, may_stay);
  if (is_any) return;
  position = 0;
  for (const double* const place : places) {
    const size_t at = position++;
    if (!(*place < 0 || *place >= 1)) continue;  // NaN goes on to be NaN
    throw py::value_error(std::string(name) + "[" + std::to_string(at) + "] of parameter group " +
                          std::to_string(index_) + " must be at least 0 and less than 1, got " +
                          std::string(py::str(py::float_(*place))));
  }
}

double GroupReader::number(py::handle value, const char* name, const double* place, bool may_stay) const {
  if (may_stay && on_device_ != nullptr && is_number_on_cuda(value)) {
    on_device_->push_back({py::reinterpret_borrow<py::object>(value), place});
    return 0;
  }
  return to_number(value, name);
}

void GroupReader::operator()(const char* name, bool& out) const {
  const int truth = PyObject_IsTrue(item(name).ptr());
  if (truth < 0) throw py::error_already_set();
  out = truth != 0;
}

bool GroupReader::flag(const char* name) const {
  const py::object found = find(name);
  if (!found || found.is_none()) return false;
  const int truth = PyObject_IsTrue(found.ptr());
  if (truth < 0) throw py::error_already_set();
  return truth != 0;
}

bool GroupReader::may_have_settings() const {
  static PyObject* const names[] = {key_of("max_grad_norm"),  key_of("skip_nonfinite"), key_of("ema_decay"),
                                    key_of("master_weights"), key_of("kahan_sum"),      key_of("stochastic_rounding"),
                                    key_of("state_dtype")};
  for (PyObject* const name : names) {
    if (PyDict_GetItemWithError(group_.ptr(), name) != nullptr) return true;
    if (PyErr_Occurred()) throw py::error_already_set();
  }
  return false;
}

bool GroupReader::clipping(std::optional<double>& max_norm, bool& skips) const {
  const py::object limit = setting("max_grad_norm"), skipping = setting("skip_nonfinite");
  if (limit && !limit.is_none()) {
    if (!PyFloat_CheckExact(limit.ptr()) && !PyLong_CheckExact(limit.ptr())) return false;
    max_norm = to_number(limit, "max_grad_norm");
    if (!(*max_norm >= 0)) return false;
  }
  if (skipping && !PyBool_Check(skipping.ptr())) return false;
  skips = skipping.is(py::handle(Py_True));
  return true;
}

bool GroupReader::average(double& weight) const {
  const char* const name = "ema_decay";
  const py::object found = setting(name);
  if (!found || found.is_none()) return false;
  const double decay = number(found, name, nullptr, false);
  if (!(decay >= 0 && decay <= 1)) {
    throw py::value_error(std::string(name) + " of parameter group " + std::to_string(index_) +
                          " must be None or from 0 to 1, got " + std::string(py::str(py::float_(decay))));
  }
  weight = 1 - decay;
  return true;
}

void GroupReader::storage(const RuleEntry& rule, StorageSettings& out) const {
  const auto invalid = [&](const char* name, const char* wanted, const py::object& value) {
    return py::value_error(std::string(name) + " of parameter group " + std::to_string(index_) + " must be " + wanted +
                           ", got " + std::string(py::repr(value)));
  };
  const auto is_set = [&](const char* name) {
    const py::object value = setting(name);
    if (!value || value.is_none() || value.is(py::handle(Py_False))) return false;
    if (!value.is(py::handle(Py_True))) throw invalid(name, "True or False", value);
    return true;
  };
  const py::object master = setting("master_weights");
  if (master && PyUnicode_Check(master.ptr())) {
    if (PyUnicode_CompareWithASCIIString(master.ptr(), "remainder") != 0)
      throw invalid("master_weights", "True, False or 'remainder'", master);
    out.companion = Companion::remainder;
  } else if (is_set("master_weights")) {
    out.companion = Companion::master;
  }
  if (is_set("kahan_sum")) {
    if (out.companion != Companion::none)
      throw invalid("kahan_sum", "False where master_weights is set", py::bool_(true));
    out.companion = Companion::compensation;
  }
  out.stochastic = is_set("stochastic_rounding");
  if (out.stochastic && out.companion != Companion::none)
    throw invalid("stochastic_rounding", "False where master_weights or kahan_sum is set", py::bool_(true));
  if (const py::object dtype = setting("state_dtype"); dtype && !dtype.is_none()) {
    const Torch& torch = Torch::get();
    const bool is_dict = PyDict_Check(dtype.ptr());
    bool is_valid = is_dict || torch.is_state_dtype(dtype);
    for (const auto& [state, own] : is_dict ? py::dict(dtype) : py::dict())
      is_valid = is_valid && torch.is_state_dtype(own);
    if (!is_valid)
      throw invalid("state_dtype", "None, torch.float32, bfloat16, float16, '8bit' or a dict of these", dtype);
    for (int k = 0; k < rule.max_states; ++k) {
      py::object own = dtype;
      if (is_dict) own = py::dict(dtype).attr("get")(rule.states[k]);
      if (own.is(torch.bfloat16())) out.stochastic_states |= 1u << k;
    }
  }
  out.is_any = out.companion != Companion::none || out.stochastic || out.stochastic_states != 0;
  if (const py::object seed = setting("seed"); seed && !seed.is_none()) {
    out.seed =
        PyLong_Check(seed.ptr()) && !PyBool_Check(seed.ptr()) ? PyLong_AsUnsignedLongLong(seed.ptr()) : uint64_t(-1);
    if (PyErr_Occurred()) PyErr_Clear(), out.seed = uint64_t(-1);
    if (out.seed == uint64_t(-1)) throw invalid("seed", "an integer from 0 to 2**64 - 2", seed);
  }
}

// Without owning anything on the way: zero_grad and the fast path ask every group.
PyObject* GroupReader::list_of_dict() const {
  static PyObject* const key = key_of("params");
  PyObject* const found = is_transparent_ ? PyDict_GetItemWithError(group_.ptr(), key) : nullptr;
  if (found != nullptr && PyList_CheckExact(found)) return found;
  if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return nullptr;
}

py::object GroupReader::params() const {
  if (PyObject* const list = list_of_dict()) return py::reinterpret_borrow<py::object>(list);
  py::object found = item("params");
  if (PyList_CheckExact(found.ptr())) return found;
  py::object list = py::reinterpret_steal<py::object>(PySequence_List(found.ptr()));
  if (!list) throw py::error_already_set();
  return list;
}

bool GroupReader::has_list() const { return list_of_dict() != nullptr || PyList_CheckExact(item("params").ptr()); }

bool GroupReader::asks_for_torch() const {
  const py::object fused = find("fused");
  const bool not_fused = fused && !fused.is_none() && !flag("fused");
  return not_fused || flag("foreach") || flag("differentiable");
}

}  // namespace fusedoptim::python
