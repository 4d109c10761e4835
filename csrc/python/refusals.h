// What the kernels cannot take, and what nobody should.
#pragma once

#include <string>

#include "python/torch.h"

namespace fusedoptim::python {

// An error about one parameter; whoever knows the parameter adds its name.
struct ParamError {
  PyObject* type;
  std::string text;
};

constexpr const char* kSharedElements =
    "unsupported operation: more than one element of the written-to tensor refers to a single memory location. Please "
    "clone() the tensor before performing the operation:";

// A lazily negated view shows memory of the opposite sign.
bool is_negated(py::handle plain);

// These return why the kernels cannot take the parameter, or null.
const char* check_param_and_grad(py::handle param, py::handle grad, const View& param_view, const View& grad_view);
const char* check_state(const View* views, int operand);  // against all views before it

}  // namespace fusedoptim::python
