#include "python/refusals.h"

#include "python/tensor_layout.h"

namespace fusedoptim::python {
namespace {

bool same_device(const View& a, const View& b) {
  return a.device.type == b.device.type && a.device.index == b.device.index;
}

bool same_type(const View& a, const View& b) {
  return a.type.code == b.type.code && a.type.bits == b.type.bits && a.type.lanes == b.type.lanes;
}

bool overlap(const View& a, const View& b) { return a.data < b.end && b.data < a.end; }

}  // namespace

bool is_negated(py::handle plain) {
  const Anatomy* anatomy = Anatomy::get();
  return anatomy != nullptr ? anatomy->is_negated(anatomy->body(plain.ptr())) : Torch::get().is_negative(plain);
}

const char* check_param_and_grad(py::handle param, py::handle grad, const View& param_view, const View& grad_view) {
  if (!same_device(param_view, grad_view)) return "its gradient is on another device";
  if (!same_type(param_view, grad_view)) return "its gradient has another dtype";
  if (!param_view.same_sizes(grad_view)) return "its gradient has another shape";
  if (!param_view.dense()) {
    if (param_view.count > 0 && param_view.expanded()) throw ParamError{PyExc_RuntimeError, kSharedElements};
    if (!param_view.disjoint()) return "its elements may share memory";
  }
  if (is_negated(param) || is_negated(grad)) return "it or its gradient is a lazily negated view";
  if (overlap(param_view, grad_view)) return "it shares memory with its gradient";
  return nullptr;
}

const char* check_state(const View* views, int operand) {
  const View& state = views[operand];
  if (!same_device(views[0], state)) return "its state is on another device";
  if (!same_type(views[0], state)) return "its state has another dtype";
  if (!state.dense() && !state.disjoint()) return "elements of its state may share memory";
  if (is_negated(state.tensor)) return "its state is a lazily negated view";
  for (int k = 0; k < operand; ++k) {
    if (overlap(views[k], state)) return "its state shares memory with it, its gradient or other state";
  }
  return nullptr;
}

}  // namespace fusedoptim::python
