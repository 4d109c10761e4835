#include "python/refusals.h"

#include "python/torch.h"

namespace fusedoptim::python {
namespace {

constexpr char kSubclass[] = "it is a tensor subclass";
constexpr char kGradOfSubclass[] = "its gradient is a tensor subclass";

std::string text_of(PyObject* name) { return py::str(py::handle(name)); }

}  // namespace

bool is_for_torch_alone(const char* reason) {
  return reason == kSubclass || reason == kGradOfSubclass || reason == kStateOfItsOwn;
}

const char* LocalPair::open(py::handle of_param, py::handle of_grad) {
  const Torch& torch = Torch::get();
  if (torch.is_plain(of_param.ptr())) {
    if (!torch.is_plain(of_grad.ptr())) return kGradOfSubclass;
    param = py::reinterpret_borrow<py::object>(of_param);
    grad = py::reinterpret_borrow<py::object>(of_grad);
    return nullptr;
  }
  DTensor whole_grad;
  if (!whole.open(of_param)) return kSubclass;
  if (whole.is_partial()) return "it is a DTensor with a Partial placement";
  if (!whole_grad.open(of_grad)) return "its gradient is not a DTensor of a plain tensor, as it is";
  if (!whole_grad.same_sharding(whole)) return "its gradient is a DTensor on another mesh or with other placements";
  is_sharded = true;
  param = whole.local();
  grad = whole_grad.local();
  return nullptr;
}

const char* read_param_and_grad(const LocalPair& local, cuda::Driver& driver, Views& views) {
  TensorView &param = views[0], &grad = views[1];
  if (!param.read(local.param.ptr())) return "torch does not show its memory";
  if (!grad.read(local.grad.ptr())) {
    const bool is_sparse = py::cast<bool>(local.grad.attr("is_sparse"));
    return is_sparse ? kSparseGrad : "its gradient is sparse or has no memory to show";
  }
  if (param.is_on_cuda()) {
    if (const char* problem = driver.problem(param.device.index)) return problem;
  } else if (!param.is_on_cpu()) {
    return "its device is not supported";
  }
  if (!param.is_number()) return "its dtype is not float64, float32, bfloat16 or float16";
  if (!param.same_device(grad)) return "its gradient is on another device";
  if (!grad.is_number()) return "its gradient is not of a floating dtype that kernels know";
  if (!param.same_sizes(grad)) return "its gradient has another shape";
  if (!param.dense()) {
    if (param.count > 0 && param.expanded()) throw ParamError{PyExc_RuntimeError, kSharedElements};
    if (!param.disjoint()) return "its elements may share memory";
  }
  if (param.is_negated() || grad.is_negated()) return "it or its gradient is a lazily negated view";
  if (param.overlaps(grad)) return "it shares memory with its gradient";
  return nullptr;
}

const char* open_states(const LocalPair& local, PyObject* const* names, int count, PyObject** entries,
                        std::vector<py::object>& kept) {
  for (int k = 0; k < count; ++k) {
    if (entries[k] == nullptr) throw ParamError{PyExc_KeyError, "the state has no '" + text_of(names[k]) + "'"};
    if (!local.is_sharded) {
      if (!Torch::get().is_plain(entries[k])) return "its state is not a plain tensor";
      continue;
    }
    DTensor state;
    if (!state.open(entries[k])) return "its state is not a DTensor of a plain tensor, as it is";
    if (!state.same_sharding(local.whole)) return "its state is a DTensor on another mesh or with other placements";
    entries[k] = kept.emplace_back(state.local()).ptr();
  }
  return nullptr;
}

const char* read_states(PyObject* const* names, int count, PyObject* const* entries, Views& views) {
  const TensorView& param = views[0];
  for (int k = 0; k < count; ++k) {
    TensorView& state = views[2 + k];
    if (!state.read(entries[k])) return "its state is sparse or has no memory to show";
    if (!state.same_sizes(param)) {
      const std::string what = text_of(names[k]) + " has shape " + state.shape();
      throw ParamError{PyExc_RuntimeError, what + ", which does not fit"};
    }
    if (!state.same_device(param)) return "its state is on another device";
    if (!state.dtype) return "its state has a dtype that the kernels do not know";
    if (!state.dense() && !state.disjoint()) return "elements of its state may share memory";
    if (state.is_negated()) return "its state is a lazily negated view";
    for (int other = 0; other < 2 + k; ++other) {
      if (state.overlaps(views[other])) return "its state shares memory with it, its gradient or other state";
    }
  }
  return nullptr;
}

const char* read_state_number(PyObject* name, PyObject* tensor, const TensorView& param, TensorView& view) {
  if (tensor == nullptr) throw ParamError{PyExc_KeyError, "the state has no '" + text_of(name) + "'"};
  if (!Torch::get().is_plain(tensor) || !view.read(tensor)) return "a number of its state is not a plain tensor";
  if (view.count != 1 || view.is_negated())
    return "a number of its state is not one number, or is a lazily negated view";
  if (!view.is_on_cpu() && !view.same_device(param))
    return "a number of its state is neither on the CPU nor on its own device";
  if (view.dtype != DType::f32 && view.dtype != DType::f64) return "a number of its state is not float32 or float64";
  return nullptr;
}

bool read_gradient(py::handle grad, TensorView& view) {
  return Torch::get().is_plain(grad.ptr()) && view.read(grad.ptr()) && view.is_number() && !view.is_negated() &&
         (view.row_major || view.disjoint());
}

bool read_dense(py::handle tensor, TensorView& view) {
  return Torch::get().is_plain(tensor.ptr()) && view.read(tensor.ptr()) && view.dense() && !view.is_negated();
}

bool read_number(py::handle number, int device, DType or_this, TensorView& view) {
  return Torch::get().is_plain(number.ptr()) && view.read(number.ptr()) && view.is_on_cuda() &&
         view.device.index == device && view.count == 1 && (view.dtype == DType::f32 || view.dtype == or_this) &&
         !view.is_negated();
}

}  // namespace fusedoptim::python
