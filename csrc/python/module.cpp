// The Python module fusedoptim._C.
#include <pybind11/stl.h>

#include "cuda/info.h"
#include "python/plan.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace py = pybind11;
using namespace pybind11::literals;
using fusedoptim::cpu::InstructionSet;
using fusedoptim::cpu::InstructionSets;
using fusedoptim::python::Plan;

namespace {

std::vector<const InstructionSet*> as_list(const InstructionSets& sets) { return {sets.sets, sets.sets + sets.count}; }

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

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

  py::class_<Plan>(m, "Plan")
      .def(py::init<const std::string&>(), "rule"_a)
      .def("gather", &Plan::gather, "groups"_a, "state"_a, "new_state"_a, "write_grads"_a)
      .def("commit", &Plan::commit, "state"_a, "instruction_set"_a, "threads"_a, "zero_grad"_a, "grad_scale"_a,
           "found_inf"_a, "drop_grads_of"_a = py::none())
      .def("is_skipped_by_host", &Plan::is_skipped_by_host)
      .def("zero_grads", &Plan::zero_grads, "groups"_a, "threads"_a)
      .def("clear", &Plan::clear);

  m.def("drop_grads", &fusedoptim::python::drop_grads, "groups"_a);
  m.def("is_on_cuda", &fusedoptim::python::is_on_cuda, "number"_a,
        "Whether it is one number in a plain tensor on a CUDA device.");
}
