// Seeing into torch tensors without torch: types, gradients and memory, at C speed.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "core/task.h"
#include "python/dlpack.h"

namespace fusedoptim::python {

namespace py = pybind11;

// What the kernels need to know of a tensor; sizes and strides are borrowed from it.
struct View {
  char* data;
  char* end;      // of the last element
  int64_t count;  // elements
  int ndim;
  const int64_t* sizes;
  const int64_t* strides;
  dlpack::Device device;
  dlpack::DataType type;
  bool row_major;    // contiguous in the order of its dimensions, as most tensors are, or without elements
  PyObject* tensor;  // borrowed

  bool same_sizes(const View& other) const;
  bool same_strides(const View& other) const;  // in every dimension that has more than one element
  bool dense() const {                         // its elements fill one stretch of memory, each once
    return row_major || (disjoint() && end - data == count * item_size());
  }
  bool disjoint() const;  // no element shares memory with another: true only when certain
  bool expanded() const;  // a dimension of several elements with stride 0
  int64_t item_size() const { return type.bits / 8; }
};

// Torch's types and accessors, looked up once when the module is loaded.
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
  // False where torch cannot show the memory of a plain tensor (sparse, meta, wrapped by torch.func, without memory,
  // …).
  bool view(PyObject* plain, View& out) const;
  // A copy of a number, a tensor or not, on a parameter's device, as float64 or float32.
  py::object number_beside(py::handle param, py::handle number, bool wide) const;
  void* current_stream(dlpack::Device device) const;
  void give_back_cached_memory() const;  // that torch's CUDA allocator holds and does not use
  void bump_versions(py::handle tensors) const { increment_version_(tensors); }
  py::object intern(const char* name) const {
    return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name));
  }

 private:
  Torch();
  PyTypeObject* tensor_type_;
  PyTypeObject* parameter_type_;
  const dlpack::ExchangeApi* api_;
  PyGetSetDef* grad_;
  PyGetSetDef* requires_grad_;
  PyGetSetDef* version_;
  bool begins_at_null(py::handle plain, const char* data, int64_t item_size) const;
  PyCFunction is_neg_;
  py::object storage_offset_, full_, float32_, float64_, runs_function_modes_, get_num_threads_;
  py::object increment_version_;
};

// Where a tensor's memory was seen, to be looked at again after the last call that may run Python code, which may have
// given the tensor other memory.
class Seen {
 public:
  explicit Seen(const View& view);
  bool is_still_there() const;  // runs no Python code

 private:
  struct Place {
    const char* begin;
    uint64_t geometry;  // a hash of sizes, strides and type
    bool operator==(const Place& o) const { return begin == o.begin && geometry == o.geometry; }
  };
  static Place find(PyObject* tensor);
  static Place place_of(const View& view);

  PyObject* tensor_;  // borrowed
  Place place_;
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

// Whether it is one number in a plain tensor on a CUDA device.
bool is_on_cuda(py::handle value);

// The storage type of a view that the kernels know; false for any other.
bool dtype_of(const View& view, DType& out);

// `state[param]` of an optimizer, or null; borrowed. Tensors hash by identity, so no Python code runs.
PyObject* find_by_identity(PyObject* dict, PyObject* key);
PyObject* find_by_hash(PyObject* dict, PyObject* key, Py_hash_t hash);
Py_hash_t hash_of(PyObject* tensor);  // of a subclass, by Python code

// Whether a mapping shows just what it stores, as a dict does and the subclasses that find and take entries as it does
// (defaultdict, OrderedDict). Any other may have a meaning of its own, which only its own methods know.
bool is_transparent(PyObject* mapping);
bool is_known_dict(PyObject* mapping);  // exactly dict, defaultdict or OrderedDict; looks at nothing else

inline py::object intern(const char* name) {
  return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name));
}

// "(3, 4)"
std::string shape_text(const View& view);

}  // namespace fusedoptim::python
