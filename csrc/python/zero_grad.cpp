#include "cpu/run.h"
#include "python/plan.h"

namespace fusedoptim::python {

void cut_off(py::handle grad) {
  grad.attr("grad_fn").is_none() ? grad.attr("requires_grad_")(false) : grad.attr("detach_")();
}

void zero_grad(py::iterable groups, bool set_to_none, int threads) {
  const Torch& torch = Torch::get();
  std::vector<cpu::Span> spans;
  py::list zeroed;  // also keeps the tensors alive while the GIL is released
  for (const py::handle group : groups) {
    const py::list params = py::reinterpret_borrow<py::dict>(group)["params"];
    for (const py::handle param : params) {
      const py::object grad = torch.grad(param);
      if (grad.is_none()) continue;
      if (set_to_none) {
        torch.clear_grad(param);
        continue;
      }
      const bool plain = torch.is_plain(grad.ptr());
      if (!plain || torch.requires_grad(grad)) cut_off(grad);
      View view;
      if (plain && torch.view(grad.ptr(), view) && view.device.type == dlpack::kCpu && view.dense()) {
        spans.push_back({view.data, view.count * view.item_size()});
        zeroed.append(grad);
      } else {
        grad.attr("zero_")();
      }
    }
  }
  {
    const py::gil_scoped_release released;
    cpu::zero(spans, threads);
  }
  torch.bump_versions(zeroed);
}

}  // namespace fusedoptim::python
