#include <algorithm>

#include "cpu/run.h"
#include "python/general_path.h"
#include "python/refusals.h"
#include "python/torch.h"
#include "python/zero_grad.h"

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
    py::object grad = Torch::get().grad(param);
    if (!grad.is_none()) visit(std::move(grad));
  });
}

}  // namespace

void detach_grad(py::handle grad) {
  grad.attr("grad_fn").is_none() ? grad.attr("requires_grad_")(false) : grad.attr("detach_")();
}

void set_grads_to_none(py::iterable groups) {
  const Torch& torch = Torch::get();
  const TensorLayout* layout = TensorLayout::get();
  for_each_param(groups, [&](py::handle param) {
    const bool has_grad = layout != nullptr && torch.is_plain(param.ptr())
                              ? bool(layout->grad(layout->impl(param.ptr())))
                              : !torch.grad(param).is_none();
    if (has_grad) torch.clear_grad(param);
  });
}

bool zero(py::handle tensor, int threads) {
  TensorView view;
  if (!read_dense(tensor, view) || !view.is_on_cpu()) return false;
  cpu::zero({{view.data, view.count * view.item_size}}, threads);
  return true;
}

bool GeneralPath::zero_grads(py::iterable groups, int threads, bool even_if_watched) {
  if (!even_if_watched && torch_parts_.is_watched()) return false;
  const Torch& torch = Torch::get();
  const Use use(*this);
  struct Grad {
    py::object whole, shard;  // owned while others run; the shard is null but of a DTensor
  };
  std::vector<Grad> grads;
  // All that may run Python code comes before the first look at memory.
  for_each_grad(groups, [&](py::object grad) {
    DTensor whole;
    const bool plain = torch.is_plain(grad.ptr()), sharded = !plain && whole.open(grad);
    if (!plain || torch.requires_grad(grad)) detach_grad(grad);
    grads.push_back({std::move(grad), sharded ? whole.local() : py::object()});
  });
  std::vector<cpu::Span> spans;
  std::vector<cuda::Span> device_spans;
  std::vector<cuda::DeviceRun> runs;
  std::vector<PointerSnapshot> snapshots;  // on devices
  std::vector<py::object> others;
  py::list zeroed;
  for (const auto& [whole, shard] : grads) {
    TensorView view;
    const bool flat = read_dense(shard ? shard : whole, view);
    if (flat && view.is_on_cpu()) {
      spans.push_back({view.data, view.count * view.item_size});
    } else if (flat && view.is_on_cuda() && driver_.problem(view.device.index) == nullptr) {
      const int index = view.device.index;
      device_spans.push_back({index, view.data, view.count * view.item_size});
      snapshots.emplace_back(view);
      const auto same = [index](const cuda::DeviceRun& run) { return run.device == index; };
      if (std::none_of(runs.begin(), runs.end(), same)) {
        runs.push_back({index, torch.current_stream(view.device)});
        runs.back().capturing = driver_.is_capturing(index, runs.back().stream);
      }
    } else {
      others.push_back(whole);
      continue;
    }
    zeroed.append(whole);
  }
  if (spans.size() + device_spans.size() > 0) {
    if (!device_spans.empty()) with_torchs_memory(runs, [&] { driver_.prepare_zero(device_spans, runs); });
    const auto is_still_true = [](const PointerSnapshot& snapshot) { return snapshot.is_still_true(); };
    if (!std::all_of(snapshots.begin(), snapshots.end(), is_still_true))
      throw std::runtime_error("the memory of a gradient was exchanged while it was being zeroed; nothing was written");
    const py::gil_scoped_release released;
    if (!device_spans.empty()) driver_.launch();
    cpu::zero(spans, threads);
  }
  torch.bump_versions(zeroed);
  for (const py::object& grad : others) grad.attr("zero_")();
  return true;
}

}  // namespace fusedoptim::python
