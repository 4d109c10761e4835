#include "python/rules.h"

#include <cmath>
#include <iterator>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "python/tensor.h"
#include "rules/all.h"

namespace fusedoptim::python {

namespace py = pybind11;

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

// Borrowed, or null.
PyObject* find(py::handle group, const char* name) {
  PyObject* found = PyDict_GetItemWithError(group.ptr(), key_of(name));
  if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return found;
}

// Owned, for reading a value may run Python code that takes it out of the group.
py::object item(py::handle group, const char* name) {
  PyObject* found = find(group, name);
  if (found == nullptr) throw py::key_error(std::string("the parameter group has no '") + name + "'");
  return py::reinterpret_borrow<py::object>(found);
}

// A tensor without its elements: it may be a long one, and torch's repr ends the process where its memory was freed.
std::string shown(py::handle value) {
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
    throw py::type_error(std::string(name) + " must be a number or a tensor with one element, got " + shown(value));
  }
  return usual_if_nan(result);
}

}  // namespace

double usual_if_nan(double x) { return x == x ? x : NAN; }

void GroupReader::operator()(const char* name, double& out) const {
  out = number(item(group_, name), name, nullptr, false);
}

void GroupReader::operator()(const char* name, double& out, OnDevice) const {
  out = number(item(group_, name), name, &out, true);
}

void GroupReader::operator()(const char* name, double& first, double& second) const {
  pair(name, first, second, false);
}

void GroupReader::operator()(const char* name, double& first, double& second, OnDevice) const {
  pair(name, first, second, true);
}

void GroupReader::pair(const char* name, double& first, double& second, bool may_stay) const {
  const py::object pair = item(group_, name);
  if (!py::isinstance<py::sequence>(pair) || py::len(pair) != 2) {
    throw py::type_error(std::string(name) + " must be a pair of numbers, got " + shown(pair));
  }
  const py::sequence both = py::reinterpret_borrow<py::sequence>(pair);
  first = number(py::object(both[0]), name, &first, may_stay);
  second = number(py::object(both[1]), name, &second, may_stay);
}

double GroupReader::number(py::handle value, const char* name, const double* place, bool may_stay) const {
  if (may_stay && on_device_ != nullptr && is_on_cuda(value)) {
    on_device_->push_back({py::reinterpret_borrow<py::object>(value), place});
    return 0;
  }
  return to_number(value, name);
}

void GroupReader::operator()(const char* name, bool& out) const {
  const int truth = PyObject_IsTrue(item(group_, name).ptr());
  if (truth < 0) throw py::error_already_set();
  out = truth != 0;
}

bool GroupReader::flag(const char* name) const {
  PyObject* found = find(group_, name);
  if (found == nullptr || found == Py_None) return false;
  const int truth = PyObject_IsTrue(py::reinterpret_borrow<py::object>(found).ptr());
  if (truth < 0) throw py::error_already_set();
  return truth != 0;
}

py::object GroupReader::list(const char* name) const {
  PyObject* found = find(group_, name);
  return found != nullptr && PyList_CheckExact(found) ? py::reinterpret_borrow<py::object>(found) : py::object();
}

bool GroupReader::asks_for_torch() const {
  PyObject* fused = find(group_, "fused");
  const bool not_fused = fused != nullptr && fused != Py_None && !flag("fused");
  return not_fused || flag("foreach") || flag("differentiable");
}

namespace {

template <template <class> class Rule>
struct Erased {
  using O = typename Rule<float>::Options;
  static_assert(sizeof(O) <= kMaxFoldBytes && sizeof(Rule<double>) <= kMaxFoldBytes);

  static const O& as_options(const Options& o) { return *reinterpret_cast<const O*>(o.bytes); }

  static void read(const GroupReader& reader, Options& out) { (new (out.bytes) O)->read(reader); }
  static int variant(const Options& o, DType dtype, bool first) {
    return dtype == DType::f64 ? Rule<double>::variant(as_options(o), first)
                               : Rule<float>::variant(as_options(o), first);
  }
  static int states_of(int variant) { return Rule<float>::states_of(variant); }
  static void fold(const Options& o, double step, DType dtype, Constants& out) {
    step = usual_if_nan(step);
    if (dtype == DType::f64) {
      new (out.bytes) Rule<double>(as_options(o), step);
    } else {
      new (out.bytes) Rule<float>(as_options(o), step);
    }
  }
  static RuleEntry entry(int index) {
    using R = Rule<float>;
    return {index, R::kName, R::kStates, int(std::size(R::kStates)), R::kCountsSteps, read, variant, states_of, fold};
  }
};

template <template <class> class... Rules>
const RuleEntry& find(const std::string& name, RuleList<Rules...>) {
  int index = 0;
  static const RuleEntry entries[] = {Erased<Rules>::entry(index++)...};
  std::string known;
  for (const RuleEntry& entry : entries) {
    if (name == entry.name) return entry;
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw py::key_error("no rule named '" + name + "'; there are: " + known);
}

}  // namespace

const RuleEntry& find_rule(const std::string& name) { return find(name, AllRules()); }

}  // namespace fusedoptim::python
