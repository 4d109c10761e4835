// Finding the entries of a dict without running Python code, as comparing keys may, and without hashing.
#pragma once

#include <Python.h>

#include <cstddef>
#include <unordered_map>
#include <vector>

namespace fusedoptim::python {

// At which positions the keys of a dict were in the last step: one look tells whether they still are.
class DictCache {
 public:
  void begin() { whole_of_ = nullptr; }                       // of a step
  PyObject* find(PyObject* dict, size_t row, PyObject* key);  // borrowed, or null

 private:
  std::vector<Py_ssize_t> at_;
  std::unordered_map<PyObject*, Py_ssize_t> whole_;
  PyObject* whole_of_ = nullptr;
};

}  // namespace fusedoptim::python
