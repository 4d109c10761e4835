#include "python/torch_parts.h"

#include "python/mappings.h"
#include "python/torch.h"

namespace fusedoptim::python {

Attributes::Attributes(py::handle optimizer)
    : all(py::reinterpret_steal<py::object>(PyObject_GenericGetDict(optimizer.ptr(), nullptr))) {
  if (!all) throw py::error_already_set();
  static PyObject* const keys[] = {intern("param_groups").release().ptr(), intern("state").release().ptr()};
  groups = py::reinterpret_borrow<py::object>(PyDict_GetItemWithError(all.ptr(), keys[0]));
  state = py::reinterpret_borrow<py::object>(PyDict_GetItemWithError(all.ptr(), keys[1]));
}

TorchParts::TorchParts(py::iterable methods, py::iterable mode_checks, py::object forward_ad,
                       py::object watch_operations)
    : forward_ad_(std::move(forward_ad)), watch_operations_(std::move(watch_operations)) {
  for (const py::handle check : mode_checks) mode_checks_.push_back(py::reinterpret_borrow<py::object>(check));
  for (const py::handle method : methods) {
    const auto [name, function] = py::cast<std::pair<py::str, py::object>>(method);
    methods_.emplace_back(name, function);
  }
}

bool TorchParts::are_unchanged(py::handle optimizer, const Attributes& attributes) const {
  return attributes.state && is_transparent(attributes.state.ptr()) && has_methods(optimizer, attributes.all) &&
         !is_watched();
}

bool TorchParts::is_watched() const {
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

bool TorchParts::has_methods(py::handle optimizer, py::handle attributes) const {
  for (const auto& [name, function] : methods_) {
    if (PyDict_GetItemWithError(attributes.ptr(), name.ptr()) != nullptr) return false;
    const py::object found = py::reinterpret_steal<py::object>(
        PyObject_GetAttr(reinterpret_cast<PyObject*>(Py_TYPE(optimizer.ptr())), name.ptr()));
    if (!found) throw py::error_already_set();
    if (!found.is(function)) return false;
  }
  return true;
}

}  // namespace fusedoptim::python
