// Torch's types and accessors, without torch's headers.
#pragma once

#include <pybind11/pybind11.h>

#include "python/dlpack.h"

namespace fusedoptim::python {

namespace py = pybind11;

// Looked up once, when the module is loaded.
class Torch {
 public:
  static const Torch& get();

  // torch.Tensor or torch.nn.Parameter exactly: a subclass may mean anything by its elements.
  bool is_plain(PyObject* object) const {
    return Py_TYPE(object) == tensor_type_ || Py_TYPE(object) == parameter_type_;
  }
  py::object grad(py::handle tensor) const;
  void clear_grad(py::handle tensor) const;
  bool requires_grad(py::handle tensor) const;
  int64_t version(py::handle tensor) const;   // counts the writes that torch knows of; -1 of an inference tensor
  bool is_negative(py::handle tensor) const;  // a lazily negated view, whose memory holds the opposite sign
  // Whether a TorchFunctionMode, which is Python code, would be called with what torch's accessors are asked.
  bool runs_function_modes() const;
  int threads() const;  // as torch.get_num_threads says
  // False where torch cannot show the memory of a plain tensor (sparse, meta, wrapped by torch.func, …).
  bool view(PyObject* plain, dlpack::Tensor& out) const;
  bool begins_at_null(py::handle plain, const char* data, int64_t item_size) const;  // where that is suspected
  // A copy of a number, a tensor or not, on a parameter's device, as float64 or float32.
  py::object number_beside(py::handle param, py::handle number, bool wide) const;
  void* current_stream(dlpack::Device device) const;
  void give_back_cached_memory() const;  // that torch's CUDA allocator holds and does not use
  const py::object& bfloat16() const { return bfloat16_; }
  // Whether states are stored in it: "8bit", a torch.dtype or None, which leaves it to the parameter.
  bool is_state_dtype(py::handle value) const;
  void bump_versions(py::handle tensors) const { increment_version_(tensors); }

 private:
  Torch();
  PyTypeObject* tensor_type_;
  PyTypeObject* parameter_type_;
  const dlpack::ExchangeApi* api_;
  PyGetSetDef* grad_;
  PyGetSetDef* requires_grad_;
  PyGetSetDef* version_;
  PyCFunction is_neg_;
  py::object storage_offset_, full_, float32_, float64_, bfloat16_, float16_, runs_function_modes_, get_num_threads_;
  py::object increment_version_;
};

// No collection of garbage, and so no finalizer, callback or weak reference, runs Python code while one exists.
class NoCollection {
 public:
  NoCollection() : was_on_(PyGC_Disable() != 0) {}
  ~NoCollection() {
    if (was_on_) PyGC_Enable();
  }
  NoCollection(const NoCollection&) = delete;

 private:
  bool was_on_;
};

inline py::object intern(const char* name) {
  return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name));
}

}  // namespace fusedoptim::python
