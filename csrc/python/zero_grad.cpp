#include <algorithm>

#include "cpu/run.h"
#include "python/checks.h"
#include "python/plan.h"

namespace fusedoptim::python {
namespace {

template <class Visit>
void for_each_param(py::iterable groups, Visit visit) {
  int index = -1;
  for (const py::handle each : groups) {
    const py::object group = py::reinterpret_borrow<py::object>(each);  // Python code may take it out meanwhile
    const py::object params = GroupReader(group, ++index).params();
    for (py::ssize_t i = 0; i < PyList_GET_SIZE(params.ptr()); ++i) {  // Python code may change the list meanwhile
      const py::object param = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(params.ptr(), i));
      visit(param);
    }
  }
}

template <class Visit>
void for_each_grad(py::iterable groups, Visit visit) {
  for_each_param(groups, [&](py::handle param) {
    const py::object grad = Torch::get().grad(param);
    if (!grad.is_none()) visit(grad);
  });
}

}  // namespace

void cut_off(py::handle grad) {
  grad.attr("grad_fn").is_none() ? grad.attr("requires_grad_")(false) : grad.attr("detach_")();
}

void drop_grads(py::iterable groups) {
  const Torch& torch = Torch::get();
  const Anatomy* anatomy = Anatomy::get();
  for_each_param(groups, [&](py::handle param) {
    const bool has_grad = anatomy != nullptr && torch.is_plain(param.ptr())
                              ? bool(anatomy->grad(anatomy->body(param.ptr())))
                              : !torch.grad(param).is_none();
    if (has_grad) torch.clear_grad(param);
  });
}

void Plan::zero_grads(py::iterable groups, int threads) {
  const Torch& torch = Torch::get();
  std::vector<cpu::Span> spans;
  std::vector<cuda::Span> device_spans;
  std::vector<cuda::DeviceRun> runs;
  std::vector<py::object> shards;
  py::list zeroed;  // also keeps the tensors alive while the GIL is released
  const Use use(*this);
  std::vector<Seen> seen;
  for_each_grad(groups, [&](py::handle grad) {
    DTensor whole;
    py::handle local = grad;
    bool plain = torch.is_plain(grad.ptr());
    if (!plain && whole.open(grad)) {
      plain = true;
      local = shards.emplace_back(whole.local());
    }
    if (!plain || torch.requires_grad(grad)) cut_off(grad);
    View view;
    const bool flat = plain && torch.view(local.ptr(), view) && view.dense() && !is_negated(local);
    if (flat && view.device.type == dlpack::kCpu) {
      spans.push_back({view.data, view.count * view.item_size()});
    } else if (flat && view.device.type == dlpack::kCuda && driver_.problem(view.device.index) == nullptr) {
      const int index = view.device.index;
      device_spans.push_back({index, view.data, view.count * view.item_size()});
      const auto same = [index](const cuda::DeviceRun& run) { return run.device == index; };
      if (std::none_of(runs.begin(), runs.end(), same)) {
        runs.push_back({index, torch.current_stream(view.device)});
        runs.back().capturing = driver_.is_capturing(index, runs.back().stream);
      }
    } else {
      grad.attr("zero_")();
      return;
    }
    seen.emplace_back(view);
    zeroed.append(grad);
  });
  if (!device_spans.empty()) with_torchs_memory(runs, [&] { driver_.prepare_zero(device_spans, runs); });
  // No Python code runs from this look on.
  if (!std::all_of(seen.begin(), seen.end(), [](const Seen& each) { return each.is_still_there(); })) {
    for (const py::handle grad : zeroed) grad.attr("zero_")();  // it has been exchanged meanwhile
    return;
  }
  {
    const py::gil_scoped_release released;
    if (!device_spans.empty()) driver_.launch();
    cpu::zero(spans, threads);
  }
  torch.bump_versions(zeroed);
}

}  // namespace fusedoptim::python
