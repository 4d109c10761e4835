// A tensor as the kernels need it: where its elements lie, and of which type they are. Whoever reads tensors reads them
// into this, but for the fast path, which reads the same words one by one (tensor_layout.h).
#pragma once

#include <pybind11/pybind11.h>

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "core/task.h"
#include "python/dlpack.h"

namespace fusedoptim::python {

namespace py = pybind11;

// Whether no element shares memory with another: true only when certain.
bool are_disjoint(int ndim, const int64_t* sizes, const int64_t* strides);

struct TensorView {
  char* data;
  char* end;      // of the last element
  int64_t count;  // elements
  int ndim;
  const int64_t* sizes;    // borrowed from the tensor, as are the strides
  const int64_t* strides;  // in elements
  dlpack::Device device;
  std::optional<DType> dtype;  // none but those that the kernels know, of numbers or not
  int64_t item_size;           // in bytes
  bool row_major;              // contiguous in the order of its dimensions, as most tensors are, or without elements
  PyObject* tensor;            // borrowed

  // Of a plain tensor; false where its memory cannot be shown (sparse, meta, wrapped by torch.func, without memory, …).
  bool read(PyObject* plain);

  bool is_number() const { return dtype && fusedoptim::is_number(*dtype); }
  bool is_on_cpu() const { return device.type == dlpack::kCpu; }
  bool is_on_cuda() const { return device.type == dlpack::kCuda; }
  bool same_device(const TensorView& other) const {
    return device.type == other.device.type && device.index == other.device.index;
  }
  bool same_sizes(const TensorView& other) const;
  bool same_strides(const TensorView& other) const;  // in every dimension that has more than one element
  bool overlaps(const TensorView& other) const { return data < other.end && other.data < end; }
  bool disjoint() const { return are_disjoint(ndim, sizes, strides); }
  bool dense() const {  // its elements fill one range of memory, each once
    return row_major || (disjoint() && end - data == count * item_size);
  }
  bool expanded() const;      // a dimension of several elements with stride 0
  bool is_negated() const;    // lazily: its memory holds the opposite sign
  std::string shape() const;  // "(3, 4)"

 private:
  bool read_layout(PyObject* plain);  // from torch's own object
  bool read_dlpack(PyObject* plain);
  void measure();  // what follows from sizes and strides
};

bool lies_on_cuda(py::handle tensor);       // whether it is a plain tensor on a CUDA device
bool is_number_on_cuda(py::handle tensor);  // whether it is one with one element

// Keeps the layouts of operands that are not contiguous in one order; their addresses stay until clear().
class LayoutStore {
 public:
  // Of operands with the sizes of the first.
  const Layout* add(const TensorView* views, int operands);
  // Of a single tensor; null where it is row-major.
  const Layout* add_unless_row_major(const TensorView& view) { return view.row_major ? nullptr : add(&view, 1); }
  void clear();

 private:
  std::deque<Layout> layouts_;
  std::deque<std::vector<int64_t>> numbers_;
};

// Where a tensor's memory was, to be looked at again after the last call that may run Python code, which may have given
// the tensor other memory.
class PointerSnapshot {
 public:
  explicit PointerSnapshot(const TensorView& view);
  bool is_still_true() const;  // runs no Python code

 private:
  struct Place {
    const char* begin;
    uint64_t geometry;  // a hash of sizes, strides and type
    bool operator==(const Place& o) const { return begin == o.begin && geometry == o.geometry; }
  };
  static Place find(PyObject* tensor);
  static Place place_of(const TensorView& view);

  PyObject* tensor_;  // borrowed
  Place place_;
};

}  // namespace fusedoptim::python
