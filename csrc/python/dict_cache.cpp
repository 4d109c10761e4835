#include "python/dict_cache.h"

namespace fusedoptim::python {

PyObject* DictCache::find(PyObject* dict, size_t row, PyObject* key) {
  PyObject *found, *value;
  if (row < at_.size()) {
    Py_ssize_t at = at_[row];
    if (PyDict_Next(dict, &at, &found, &value) && found == key) return value;
  } else {
    at_.resize(row + 1);
  }
  if (whole_of_ != dict) {  // once a step, for a step in which any has moved
    whole_.clear();
    for (Py_ssize_t at = 0, before = 0; PyDict_Next(dict, &at, &found, &value); before = at) whole_[found] = before;
    whole_of_ = dict;
  }
  const auto known = whole_.find(key);
  if (known == whole_.end()) return nullptr;
  Py_ssize_t at = at_[row] = known->second;
  return PyDict_Next(dict, &at, &found, &value) && found == key ? value : nullptr;
}

}  // namespace fusedoptim::python
