// The first half of a step: everything is read and checked, nothing is changed.
#include "python/plan.h"

namespace fusedoptim::python {
namespace {

constexpr const char* kOverlap = "its memory overlaps that of its gradient or state";

std::string describe(py::handle group, int group_index, py::ssize_t index, py::handle param) {
  std::string text = "parameter " + std::to_string(index) + " of group " + std::to_string(group_index) + " (";
  if (group.contains("param_names")) text += "'" + std::string(py::str(group["param_names"][py::int_(index)])) + "', ";
  return text + "shape " + std::string(py::str(py::tuple(param.attr("shape")))) + ", " +
         std::string(py::str(param.attr("dtype"))) + ", " + std::string(py::str(param.attr("device"))) + ")";
}

// Errors found deep inside name the parameter on their way out.
struct ParamError {
  PyObject* type;
  std::string text;
};

}  // namespace

py::object Plan::gather(py::list groups, py::dict state, py::function new_state) {
  clear();
  py::list foreign;
  bool any_foreign = false;
  for (py::ssize_t g = 0; g < py::ssize_t(groups.size()); ++g) {
    const py::dict dict = groups[g];
    const GroupReader reader(dict);
    const py::list params = dict["params"];
    py::list left;
    // The user asked for torch's own implementation.
    const py::object fused = dict.contains("fused") ? py::object(dict["fused"]) : py::none();
    const bool torchs =
        (!fused.is_none() && !reader.flag("fused")) || reader.flag("foreach") || reader.flag("differentiable");
    Group* group = nullptr;
    if (!torchs) {
      group = &groups_.emplace_back();
      group->dict = dict;
      group->index = int(g);
      group->maximize = reader.flag("maximize");
      group->strict = reader.flag("fused");
      rule_.read(reader, group->options);
    }
    for (py::ssize_t i = 0; i < py::ssize_t(params.size()); ++i) {
      const py::object param = params[i];
      py::object grad = Torch::get().grad(param);
      if (grad.is_none()) continue;
      const char* reason = nullptr;
      if (group != nullptr) {
        try {
          reason = add_row(*group, param, std::move(grad), find_by_identity(state.ptr(), param.ptr()), new_state);
        } catch (const ParamError& error) {
          const std::string text = error.text + " in " + describe(dict, int(g), i, param);
          PyErr_SetString(error.type, text.c_str());
          throw py::error_already_set();
        }
        if (reason == nullptr) continue;
        if (group->strict) {
          throw std::runtime_error(
              "`fused=True` requires all the params to be floating point Tensors of supported devices: ['cpu'] but " +
              describe(dict, int(g), i, param) + " cannot be taken by the fused kernels: " + reason +
              "; with fused=None torch's own implementation takes it");
        }
      }
      left.append(param);
      any_foreign = true;
    }
    foreign.append(left);
  }
  return any_foreign ? py::object(foreign) : py::none();
}

const char* Plan::add_row(const Group& group, py::handle param, py::object grad, PyObject* state,
                          py::handle new_state) {
  const Torch& torch = Torch::get();
  if (!torch.is_plain(param.ptr())) return "it is a tensor subclass";
  if (!torch.is_plain(grad.ptr())) return "its gradient is a tensor subclass";

  rows_.emplace_back();
  Row& row = rows_.back();
  row.group = &group;
  row.param = py::reinterpret_borrow<py::object>(param);
  row.grad = std::move(grad);
  const char* reason = view_operands(row, state, new_state);
  if (reason != nullptr) rows_.pop_back();
  return reason;
}

const char* Plan::view_operands(Row& row, PyObject* state, py::handle new_state) {
  const Torch& torch = Torch::get();
  View& param = row.operands[0];
  if (!torch.view(row.param.ptr(), param)) return "torch does not show its memory";
  if (!torch.view(row.grad.ptr(), row.operands[1])) return "its gradient is sparse or has no memory to show";
  if (param.device.type != dlpack::kCpu) return "its device is not supported";
  if (!dtype_of(param, row.dtype)) return "its dtype is not float64, float32, bfloat16 or float16";

  // The state: none yet, or all of it.
  row.variant = rule_.variant(row.group->options, row.dtype, false);
  const int states = rule_.states_of(row.variant);
  row.operand_count = 2 + states;
  if (states == 0 && !rule_.counts_steps) return check_memory(row, row.operand_count);

  const auto entry = [&](const char* name) -> PyObject* {
    if (state == nullptr) return nullptr;
    if (!PyDict_Check(state)) throw ParamError{PyExc_TypeError, "the state must be a dict"};
    PyObject* found = PyDict_GetItemString(state, name);
    return found == Py_None ? nullptr : found;
  };
  row.fresh = entry(rule_.states[0]) == nullptr && (!rule_.counts_steps || entry("step") == nullptr);
  if (row.fresh) {
    // Checked before new state is made, so that a refused parameter leaves no trace.
    if (const char* reason = check_memory(row, 2)) return reason;
    row.state = new_state(row.param, row.group->dict);
    state = row.state.ptr();
    row.variant = rule_.variant(row.group->options, row.dtype, true);
  } else {
    row.state = py::reinterpret_borrow<py::object>(state);
  }
  for (int k = 0; k < states; ++k) {
    const char* name = rule_.states[k];
    PyObject* tensor = entry(name);
    if (tensor == nullptr) throw ParamError{PyExc_KeyError, std::string("the state has no '") + name + "'"};
    if (!torch.is_plain(tensor)) return "its state is not a plain tensor";
    View& view = row.operands[2 + k];
    if (!torch.view(tensor, view)) return "its state is sparse or has no memory to show";
    if (!view.same_sizes(param)) {
      throw ParamError{PyExc_RuntimeError,
                       std::string(name) + " has shape " + shape_text(view) + ", which does not fit"};
    }
  }
  if (rule_.counts_steps) {
    PyObject* step = entry("step");
    if (step == nullptr) throw ParamError{PyExc_KeyError, "the state has no 'step'"};
    if (const char* reason = view_step(row, step)) return reason;
  }
  return check_memory(row, row.operand_count);
}

const char* Plan::view_step(Row& row, py::handle step) const {
  View view;
  DType dtype;
  if (!Torch::get().is_plain(step.ptr()) || !Torch::get().view(step.ptr(), view))
    return "its step is not a plain tensor";
  if (view.device.type != dlpack::kCpu || view.count != 1) return "its step is not one number on the CPU";
  if (!dtype_of(view, dtype) || (dtype != DType::f32 && dtype != DType::f64))
    return "its step is not float32 or float64";
  row.step = view.data;
  row.step_is_double = dtype == DType::f64;
  return nullptr;
}

const char* Plan::check_memory(const Row& row, int operands) const {
  const View& param = row.operands[0];
  for (int k = 1; k < operands; ++k) {
    const View& other = row.operands[k];
    const bool same_device = other.device.type == param.device.type && other.device.index == param.device.index;
    const bool same_type = other.type.code == param.type.code && other.type.bits == param.type.bits;
    if (!same_device) return k == 1 ? "its gradient is on another device" : "its state is on another device";
    if (!same_type) return k == 1 ? "its gradient has another dtype" : "its state has another dtype";
    if (!other.same_sizes(param)) return "its gradient has another shape";
    if (k > 1 && !other.dense() && !other.disjoint()) return "elements of its state share memory";
  }
  for (int a = 0; a < operands; ++a) {
    for (int b = a + 1; b < operands; ++b) {
      const View &x = row.operands[a], &y = row.operands[b];
      if (x.data < y.data + y.extent() && y.data < x.data + x.extent()) return kOverlap;
    }
  }
  if (!param.dense()) {
    if (param.expanded()) {
      throw ParamError{
          PyExc_RuntimeError,
          "unsupported operation: more than one element of the written-to tensor refers to a single memory "
          "location. Please clone() the tensor before performing the operation:"};
    }
    if (!param.disjoint()) return "its elements may share memory";
  }
  // A lazily negated view shows memory of the opposite sign; torch makes them with strides that skip elements.
  for (const auto& [tensor, view] : {std::pair{row.param, &param}, {row.grad, &row.operands[1]}}) {
    if ((view->count == 1 || !view->dense()) && Torch::get().is_negative(tensor)) return "it is a lazily negated view";
  }
  return nullptr;
}

void Plan::clear() {
  rows_.clear();
  groups_.clear();
}

}  // namespace fusedoptim::python
