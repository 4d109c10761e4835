#include "python/mappings.h"

#include "python/torch.h"

namespace fusedoptim::python {

Py_hash_t hash_of(PyObject* tensor) {
  if (Torch::get().is_plain(tensor)) return Py_hash_t(reinterpret_cast<uintptr_t>(tensor));
  const Py_hash_t hash = PyObject_Hash(tensor);
  if (hash == -1) throw py::error_already_set();
  return hash;
}

PyObject* find_by_hash(PyObject* dict, PyObject* key, Py_hash_t hash) {
  PyObject* found = _PyDict_GetItem_KnownHash(dict, key, hash);
  if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return found;
}

PyObject* find_by_identity(PyObject* dict, PyObject* key) { return find_by_hash(dict, key, hash_of(key)); }

namespace {

py::handle default_dict() {
  static PyObject* const type = py::object(py::module_::import("collections").attr("defaultdict")).release().ptr();
  return type;
}

}  // namespace

bool is_known_dict(PyObject* mapping) {
  if (PyDict_CheckExact(mapping) || PyODict_CheckExact(mapping)) return true;
  return reinterpret_cast<PyObject*>(Py_TYPE(mapping)) == default_dict().ptr();
}

bool is_transparent(PyObject* mapping) {
  if (is_known_dict(mapping)) return true;
  if (!PyDict_Check(mapping)) return false;
  const py::handle type = reinterpret_cast<PyObject*>(Py_TYPE(mapping)),
                   dict = reinterpret_cast<PyObject*>(&PyDict_Type);
  for (const char* name : {"__getitem__", "__setitem__", "__len__", "get"}) {
    if (!type.attr(name).is(dict.attr(name))) return false;
  }
  const py::object plain_default = default_dict().attr("__missing__");
  return py::getattr(type, "__missing__", plain_default).is(plain_default);
}

void update(PyObject* dict, PyObject* entries) {
  if (!PyODict_Check(dict)) {
    if (PyDict_Update(dict, entries) != 0) throw py::error_already_set();
    return;
  }
  PyObject *key, *value;
  for (Py_ssize_t at = 0; PyDict_Next(entries, &at, &key, &value);) {
    if (PyObject_SetItem(dict, key, value) != 0) throw py::error_already_set();
  }
}

}  // namespace fusedoptim::python
