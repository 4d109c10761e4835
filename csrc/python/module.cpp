// The Python module fusedoptim._C.
#include <pybind11/stl.h>

#include <memory>
#include <optional>

#include "core/nan.h"
#include "cuda/info.h"
#include "python/device_grads.h"
#include "python/general_path.h"
#include "python/grads.h"
#include "python/torch.h"
#include "python/zero_grad.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace py = pybind11;
using namespace pybind11::literals;
using fusedoptim::cpu::InstructionSet;
using fusedoptim::cpu::InstructionSets;
using fusedoptim::python::GeneralPath;
using fusedoptim::python::Grads;
using fusedoptim::python::TorchParts;

namespace {

std::vector<const InstructionSet*> as_list(const InstructionSets& sets) { return {sets.sets, sets.sets + sets.count}; }

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

// pybind11's own errors print every argument, parameters among them, and torch's repr ends the process where their
// memory was freed. So what may be wrong is taken as any object, and asked for its type here.
template <class T>
T checked(py::handle value, const char* name, const char* type) {
  if (py::isinstance<T>(value)) return py::reinterpret_borrow<T>(value);
  throw py::type_error(std::string(name) + " must be " + type + ", got " + Py_TYPE(value.ptr())->tp_name);
}

py::iterable as_groups(py::handle value) { return checked<py::iterable>(value, "groups", "a list of dicts"); }

py::object prepare(GeneralPath& path, py::handle groups, py::object state, py::object new_state, bool write_grads,
                   const std::vector<double>& clips) {
  return path.prepare(as_groups(groups), std::move(state), std::move(new_state), write_grads, clips);
}

py::object prepare_limited(GeneralPath& path, py::handle groups, py::object state, py::object new_state,
                           bool write_grads, std::vector<std::optional<double>> limits, py::handle norm, int device) {
  const double* const at = fusedoptim::python::address_of(norm);
  return path.prepare(as_groups(groups), std::move(state), std::move(new_state), write_grads, {},
                      {at, device, std::move(limits)});
}

bool apply(GeneralPath& path, py::handle state, py::handle set, int threads, bool zero_grad, py::object grad_scale,
           py::object found_inf, py::object set_to_none_in) {
  if (!py::isinstance<InstructionSet>(set)) throw py::type_error("instruction_set must be one of supported()");
  return path.apply(checked<py::dict>(state, "state", "a dict"), py::cast<const InstructionSet&>(set), threads,
                    zero_grad, std::move(grad_scale), std::move(found_inf), std::move(set_to_none_in));
}

const InstructionSet* of_fast_steps = nullptr;  // the best that there is, unless another is set

void set_instruction_set(py::handle set) {
  if (!py::isinstance<InstructionSet>(set)) throw py::type_error("instruction_set must be one of supported()");
  of_fast_steps = &py::cast<const InstructionSet&>(set);
}

const InstructionSet& chosen_set() {
  if (of_fast_steps == nullptr) of_fast_steps = fusedoptim::cpu::supported().sets[0];
  return *of_fast_steps;
}

bool fast_step(GeneralPath& path, py::handle optimizer, bool zero_grad, std::optional<double> grad_scale,
               bool set_grads_to_none, py::handle clips) {
  const double* const scale = grad_scale ? &*grad_scale : nullptr;
  if (clips.is_none())
    return path.fast_step(optimizer, chosen_set(), zero_grad, scale, set_grads_to_none, nullptr, nullptr);
  const auto of_groups = py::cast<std::vector<double>>(clips);
  return path.fast_step(optimizer, chosen_set(), zero_grad, scale, set_grads_to_none, &of_groups, nullptr);
}

// None, or whether the step was skipped, the norm of what it has clipped or None, and the dtypes of that.
py::object measuring_step(GeneralPath& path, py::handle optimizer, bool zero_grad, std::optional<double> grad_scale,
                          bool set_grads_to_none, bool skip_nonfinite) {
  GeneralPath::Measured measured;
  measured.may_skip = skip_nonfinite;
  const double* const scale = grad_scale ? &*grad_scale : nullptr;
  if (!path.fast_step(optimizer, chosen_set(), zero_grad, scale, set_grads_to_none, nullptr, &measured))
    return py::none();
  py::list dtypes;
  for (int i = 0; i < fusedoptim::kDTypes; ++i) {
    if (measured.dtypes[size_t(i)]) dtypes.append(fusedoptim::torch_name(fusedoptim::DType(i)));
  }
  return py::make_tuple(measured.is_skipped, measured.is_clipped ? py::object(py::float_(measured.norm)) : py::none(),
                        py::tuple(dtypes));
}

double sum_squares(const Grads& grads, const std::vector<double>& of_others, std::optional<double> grad_scale,
                   int threads) {
  if (grad_scale) grad_scale = fusedoptim::canonicalize_nan(*grad_scale);
  return grads.sum_squares(of_others, grad_scale ? &*grad_scale : nullptr, threads, chosen_set());
}

bool zero_grads(GeneralPath& path, py::handle groups, int threads, bool even_if_watched) {
  return path.zero_grads(as_groups(groups), threads, even_if_watched);
}

py::list explain(GeneralPath& path, py::handle groups, py::object state, py::object new_state) {
  return path.explain(as_groups(groups), std::move(state), std::move(new_state));
}

void set_grads_to_none(py::handle groups) { fusedoptim::python::set_grads_to_none(as_groups(groups)); }

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.attr("version") = FUSEDOPTIM_VERSION;
  m.attr("compiler") = compiler();
#if defined(_OPENMP)
  m.attr("openmp") = _OPENMP;
#else
  m.attr("openmp") = py::none();
#endif
  m.attr("cuda_architectures") = fusedoptim::cuda::architectures();
  m.attr("cuda_compiler") = fusedoptim::cuda::compiler();
  m.attr("cuda_runtime") = fusedoptim::cuda::runtime();
  m.def("cuda_error", fusedoptim::cuda::error, "Why CUDA cannot be used here, or None.");
  fusedoptim::python::Torch::get();  // fails here, at import, if this torch is not one we know

  py::class_<InstructionSet>(m, "InstructionSet").def_property_readonly("name", [](const InstructionSet& s) {
    return s.name;
  });
  m.def(
      "built", [] { return as_list(fusedoptim::cpu::built()); }, py::return_value_policy::reference,
      "The instruction sets that this build has kernels for, best first.");
  m.def(
      "supported", [] { return as_list(fusedoptim::cpu::supported()); }, py::return_value_policy::reference,
      "Those of them that this processor runs, best first.");

  py::class_<GeneralPath>(m, "StepExecutor")
      .def(py::init([](const std::string& rule, py::iterable methods, py::iterable mode_checks, py::object forward_ad,
                       py::object watch_operations) {
             return std::make_unique<GeneralPath>(rule, TorchParts(std::move(methods), std::move(mode_checks),
                                                                   std::move(forward_ad), std::move(watch_operations)));
           }),
           "rule"_a, "torch_parts"_a = py::tuple(), "mode_checks"_a = py::tuple(), "forward_ad"_a = py::dict(),
           "watch_operations"_a = py::none())
      .def("fast_step", fast_step, "optimizer"_a, "zero_grad"_a, "grad_scale"_a, "set_grads_to_none"_a, "clips"_a)
      .def("measuring_step", measuring_step, "optimizer"_a, "zero_grad"_a, "grad_scale"_a, "set_grads_to_none"_a,
           "skip_nonfinite"_a)
      .def("is_ours", &GeneralPath::is_ours, "optimizer"_a)
      .def("prepare", prepare, "groups"_a, "state"_a, "new_state"_a, "write_grads"_a, "clips"_a = std::vector<double>())
      .def("prepare_limited", prepare_limited, "groups"_a, "state"_a, "new_state"_a, "write_grads"_a, "limits"_a,
           "norm"_a, "device"_a)
      .def("apply", apply, "state"_a, "instruction_set"_a, "threads"_a, "zero_grad"_a, "grad_scale"_a, "found_inf"_a,
           "set_to_none_in"_a = py::none())
      .def("is_skipped_by_host", &GeneralPath::is_skipped_by_host)
      .def("explain", explain, "groups"_a, "state"_a, "new_state"_a)
      .def("zero_grads", zero_grads, "groups"_a, "threads"_a, "even_if_watched"_a = false)
      .def("clear", &GeneralPath::clear);

  py::class_<Grads>(m, "Grads")
      .def(py::init([](py::handle lists) { return Grads(checked<py::iterable>(lists, "lists", "lists of tensors")); }),
           "lists"_a)
      .def("__len__", &Grads::count)
      .def("others", &Grads::others)
      .def("samples", &Grads::samples)
      .def("sum_squares", sum_squares, "of_others"_a, "grad_scale"_a, "threads"_a)
      .def(
          "unscale",
          [](Grads& grads, double grad_scale, int threads) { return grads.unscale(grad_scale, threads, chosen_set()); },
          "grad_scale"_a, "threads"_a)
      .def(
          "scale", [](Grads& grads, double factor, int threads) { grads.scale(factor, threads, chosen_set()); },
          "factor"_a, "threads"_a)
      .def("are_as_found", [](const Grads& grads) { return grads.are_as_found(chosen_set()); });

  fusedoptim::python::define_device_grads(m);
  m.def(
      "learn_layout", fusedoptim::python::TensorLayout::probe,
      "Learn where torch keeps the words of a tensor, for the fast path, in a thread that is in none of torch's modes; "
      "raises RuntimeError where this torch keeps them otherwise.");
  m.def("set_instruction_set", set_instruction_set, "instruction_set"_a, "Of the fast path, from now on.");
  m.def("zero", fusedoptim::python::zero, "tensor"_a, "threads"_a,
        "Write zeros over a new tensor and return True, or return False if it is not plain memory of the CPU.");
  m.def("set_grads_to_none", set_grads_to_none, "groups"_a);
  m.def("lies_on_cuda", &fusedoptim::python::lies_on_cuda, "tensor"_a,
        "Whether it is a plain tensor on a CUDA device.");
  m.def("is_on_cuda", &fusedoptim::python::is_number_on_cuda, "number"_a,
        "Whether it is one number in a plain tensor on a CUDA device.");
}
