// What the kernels refuse, and what nobody should take: one text for each, and one place that reads tensors and judges
// them. The fast path leaves more than this to the general one (fast_look.cpp), and takes nothing that is refused here.
#pragma once

#include <string>
#include <vector>

#include "cuda/run.h"
#include "python/dtensor.h"
#include "python/tensor_view.h"

namespace fusedoptim::python {

// An error about one parameter; whoever knows the parameter adds its name.
struct ParamError {
  PyObject* type;
  std::string text;
};

constexpr const char* kSharedElements =
    "unsupported operation: more than one element of the written-to tensor refers to a single memory location. Please "
    "clone() the tensor before performing the operation:";

// Functions below that return a text return why the kernels cannot take the parameter, or null. These are compared by
// address.
inline constexpr char kSparseGrad[] = "its gradient is sparse";
inline constexpr char kStateOfItsOwn[] = "its state is a mapping with methods of its own";

// What stands for something that only its own methods know, which torch's implementations call.
bool is_for_torch_alone(const char* reason);

// A parameter and its gradient as this process holds them: themselves, or the local tensors of DTensors.
struct LocalPair {
  DTensor whole;  // the parameter, if it is a DTensor
  bool is_sharded = false;
  py::object param, grad;

  const char* open(py::handle of_param, py::handle of_grad);
};

// The operands of a task, in its order.
using Views = TensorView[kMaxOperands];

const char* read_param_and_grad(const LocalPair& local, cuda::Driver& driver, Views& views);
// Puts what a DTensor among the entries holds here in its place; `kept` owns it.
const char* open_states(const LocalPair& local, PyObject* const* names, int count, PyObject** entries,
                        std::vector<py::object>& kept);
const char* read_states(PyObject* const* names, int count, PyObject* const* entries, Views& views);
// `name`: "step", or that of another number.
const char* read_state_number(PyObject* name, PyObject* tensor, const TensorView& param, TensorView& view);

// Whether the kernels of the norm can read a gradient, and multiply it in place.
bool read_gradient(py::handle grad, TensorView& view);

// Whether zeros can be written over the one range of memory that a tensor of any dtype fills.
bool read_dense(py::handle tensor, TensorView& view);

// Whether it is one number, float32 or `or_this`, in a plain tensor on this CUDA device.
bool read_number(py::handle number, int device, DType or_this, TensorView& view);

}  // namespace fusedoptim::python
