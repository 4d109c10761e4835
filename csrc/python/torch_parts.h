// What asks for torch's own step in place of ours.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

namespace fusedoptim::python {

namespace py = pybind11;

// The attributes of an optimizer that a step reads, without running Python code.
struct Attributes {
  explicit Attributes(py::handle optimizer);
  py::object all, groups, state;
};

class TorchParts {
 public:
  // `methods`: pairs of a name and a function, those that the step of torch's class calls. `mode_checks`: functions
  // that return 0 or None unless a mode of torch is active. `forward_ad`: the names of torch's module.
  // `watch_operations`: whether the active modes do more than to choose a device, or None for always.
  TorchParts(py::iterable methods, py::iterable mode_checks, py::object forward_ad, py::object watch_operations);

  // Whether a mode of torch is active that is to see all operations, which the kernels' writes are none of.
  bool is_watched() const;
  // Whether a step of ours means what torch's means: its methods are not overridden, the state is a dict, nobody
  // watches.
  bool are_unchanged(py::handle optimizer, const Attributes& attributes) const;

 private:
  bool has_methods(py::handle optimizer, py::handle attributes) const;

  std::vector<std::pair<py::object, py::object>> methods_;
  std::vector<py::object> mode_checks_;
  py::object forward_ad_, watch_operations_;
};

}  // namespace fusedoptim::python
