// Gradients that are zeroed or dropped, for a whole optimizer at once.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedoptim::python {

namespace py = pybind11;

// Sets the gradients of all parameters to None, as torch.optim.Optimizer.zero_grad does.
void set_grads_to_none(py::iterable groups);

// Writes zeros over a new tensor, as torch's own filling does, but in threads that a forked child has as well; or
// returns false, if it is not plain memory of the CPU.
bool zero(py::handle tensor, int threads);

// Stops autograd from following a gradient that is about to be zeroed, as Optimizer.zero_grad does.
void detach_grad(py::handle grad);

}  // namespace fusedoptim::python
