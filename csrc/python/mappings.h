// Dicts, and other mappings that are as good as one, without running Python code.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedoptim::python {

// `state[param]` of an optimizer, or null; borrowed. Tensors hash by identity, so no Python code runs.
PyObject* find_by_identity(PyObject* dict, PyObject* key);
PyObject* find_by_hash(PyObject* dict, PyObject* key, Py_hash_t hash);
Py_hash_t hash_of(PyObject* tensor);  // of a subclass, by Python code

// Whether a mapping shows just what it stores, as a dict does and the subclasses that find and take entries as it does
// (defaultdict, OrderedDict). Any other may have a meaning of its own, which only its own methods know.
bool is_transparent(PyObject* mapping);
bool is_known_dict(PyObject* mapping);  // exactly dict, defaultdict or OrderedDict; looks at nothing else

// As dict.update does, with what an OrderedDict keeps beside the dict.
void update(PyObject* dict, PyObject* entries);

}  // namespace fusedoptim::python
