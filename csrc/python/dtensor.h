// DTensors (torch.distributed.tensor): tensors sharded over several processes, each of which holds a plain tensor.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedoptim::python {

namespace py = pybind11;

class DTensor {
 public:
  // False for anything but a DTensor, exactly, that holds a plain tensor. Waits for one that is still being received.
  bool open(py::handle tensor);

  const py::object& local() const { return local_; }  // what this process holds of it
  bool same_sharding(const DTensor& other) const;     // so that equal elements lie in equal places
  // The place of this process's first element, of a local tensor of these sizes, in the whole tensor; false where that
  // tells not the places of all, since it does not hold whole rows.
  bool first_element(int ndim, const int64_t* sizes, int64_t& out) const;
  bool is_partial() const;  // with a Partial placement: the elements are parts of sums

 private:
  py::object local_, spec_;
};

}  // namespace fusedoptim::python
