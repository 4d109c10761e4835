#include "python/grads.h"

#include <stdexcept>

#include "core/nan.h"
#include "core/sum.h"
#include "python/refusals.h"
#include "python/tensor_layout.h"
#include "python/torch.h"

namespace fusedoptim::python {

Grads::Grads(py::iterable lists) {
  const Torch& torch = Torch::get();
  for (const py::handle each : lists) {
    const py::list params(py::reinterpret_borrow<py::object>(each));
    found_.reserve(found_.size() + params.size());
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params.ptr()); ++i) {
      Found found;
      found.param = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(params.ptr(), i));
      found.grad = torch.grad(found.param);
      if (!found.grad.is_none()) found_.push_back(std::move(found));
    }
  }
  // All that may run Python code is done.
  const NoCollection no_collection;
  grads_.reserve(found_.size());
  for (Found& found : found_) {
    found.is_plain = add(found.grad);
    found.version = version_of(found.grad);
    found.memory = memory_of(found.grad);
  }
}

int64_t Grads::version_of(py::handle grad) {
  const TensorLayout* const layout = TensorLayout::get();
  return layout != nullptr && Torch::get().is_plain(grad.ptr()) ? layout->version(layout->impl(grad.ptr()))
                                                                : Torch::get().version(grad);
}

const void* Grads::memory_of(py::handle grad) {
  if (!Torch::get().is_plain(grad.ptr())) return nullptr;
  const TensorLayout* const layout = TensorLayout::get();
  if (layout != nullptr) return layout->data(layout->impl(grad.ptr()), 8);
  TensorView view;
  return view.read(grad.ptr()) ? view.data : nullptr;
}

bool Grads::add(py::handle grad) {
  TensorView view;
  if (!read_gradient(grad, view) || !view.is_on_cpu()) return false;
  grads_.push_back({view.data, view.count, *view.dtype, layouts_.add_unless_row_major(view)});
  if (view.count > 0) ranges_.add(view.data, view.end, true);
  return true;
}

py::list Grads::others() const {
  py::list others;
  for (const Found& found : found_) {
    if (!found.is_plain) others.append(found.grad);
  }
  return others;
}

py::list Grads::samples() const {
  py::list samples;
  unsigned seen = 0;  // a bit for each dtype
  size_t next = 0;
  for (const Found& found : found_) {
    if (found.is_plain) {
      const unsigned bit = 1u << int(grads_[next++].dtype);
      if ((seen & bit) != 0) continue;
      seen |= bit;
    }
    samples.append(found.grad);
  }
  return samples;
}

double Grads::sum_squares(const std::vector<double>& of_others, const double* grad_scale, int threads,
                          const cpu::InstructionSet& set) const {
  std::vector<double> sums(grads_.size()), all;
  {
    const py::gil_scoped_release released;
    cpu::sum_squares(grads_, grad_scale, threads, set, sums.data());
  }
  size_t own = 0, other = 0;
  for (const Found& found : found_) all.push_back(found.is_plain ? sums[own++] : of_others.at(other++));
  return ordered_sum(all.data(), int64_t(all.size()));
}

double Grads::unscale(double grad_scale, int threads, const cpu::InstructionSet& set) {
  if (grads_.size() != found_.size()) throw std::logic_error("not all gradients are plain memory of the CPU");
  std::vector<double> sums(grads_.size());
  const py::list grads = written();
  const bool are_shared = ranges_.overlap(true);
  {
    const py::gil_scoped_release released;
    cpu::unscale(grads_, canonicalize_nan(grad_scale), are_shared ? 1 : threads, set, sums.data());
    // What was summed may have been divided again, as a part of another.
    if (are_shared) cpu::sum_squares(grads_, nullptr, threads, set, sums.data());
    beginnings_.resize(grads_.size());
    cpu::sum_beginnings(grads_, 1, set, beginnings_.data());
  }
  Torch::get().bump_versions(grads);
  for (Found& found : found_) found.version = version_of(found.grad);
  return ordered_sum(sums.data(), int64_t(sums.size()));
}

py::list Grads::written() const {
  py::list written;
  for (const Found& found : found_) {
    if (found.is_plain) written.append(found.grad);
  }
  return written;
}

void Grads::scale(double factor, int threads, const cpu::InstructionSet& set) {
  const py::list grads = written();
  const bool are_shared = ranges_.overlap(true);  // then one after the other, as a loop over them would
  {
    const py::gil_scoped_release released;
    cpu::scale(grads_, canonicalize_nan(factor), are_shared ? 1 : threads, set);
  }
  Torch::get().bump_versions(grads);
}

bool Grads::are_as_found(const cpu::InstructionSet& set) const {
  const Torch& torch = Torch::get();
  for (const Found& found : found_) {
    if (!torch.grad(found.param).is(found.grad) || version_of(found.grad) != found.version ||
        memory_of(found.grad) != found.memory)
      return false;
  }
  if (beginnings_.empty()) return true;
  const NoCollection no_collection;
  Grads now;
  for (size_t i = 0; i < grads_.size(); ++i) {  // the memory of a gradient may be another by now
    if (!now.add(found_[i].grad)) return false;
    const cpu::Grad &grad = now.grads_.back(), &before = grads_[i];
    if (grad.data != before.data || grad.count != before.count || grad.dtype != before.dtype) return false;
  }
  std::vector<double> beginnings(grads_.size());
  cpu::sum_beginnings(now.grads_, 1, set, beginnings.data());
  return beginnings == beginnings_;
}

}  // namespace fusedoptim::python
