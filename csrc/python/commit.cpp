// The second half of a step. All that can fail comes first; then state, step counts and elements are written.
#include <algorithm>

#include "cpu/run.h"
#include "python/plan.h"

namespace fusedoptim::python {

void Plan::commit(py::dict state, const cpu::InstructionSet& set, int threads, bool zero_grad, py::object grad_scale) {
  RunOptions options;
  options.threads = threads;
  options.unscale = !grad_scale.is_none();
  if (options.unscale) options.grad_scale = py::cast<double>(grad_scale);
  const bool grads_are_written = zero_grad || options.unscale;

  // Where parameters share memory, they are updated one after the other, as a loop over them would, and gradients are
  // zeroed after the last of them has been read.
  options.in_order = memory_is_shared(grads_are_written);
  const bool zero_later = zero_grad && options.in_order;
  if (zero_grad) check_zeroable();
  build_tasks(zero_grad && !zero_later);
  const cpu::Schedule schedule(tasks_, options);

  const Torch& torch = Torch::get();
  py::list written(rows_.size());
  for (size_t i = 0; i < rows_.size(); ++i) written[i] = rows_[i].param;
  if (grads_are_written) {
    for (const Row& row : rows_) written.append(row.grad);
  }
  adopt_fresh_state(state);
  for (const Row& row : rows_) {
    if (row.step == nullptr) continue;
    row.step_is_double ? *reinterpret_cast<double*>(row.step) += 1 : *reinterpret_cast<float*>(row.step) += 1;
  }
  {
    const py::gil_scoped_release released;
    schedule.run(set);
    if (zero_later) cpu::zero_grads(tasks_);
  }
  torch.bump_versions(written);
  clear();
}

bool Plan::memory_is_shared(bool grads_are_written) {
  // Sorted by address, a range overlaps an earlier one if it begins before the furthest end so far; one of the two
  // must be written for the order to matter. The order hardly changes from step to step, which makes sorting cheap.
  ranges_.clear();
  for (const Row& row : rows_) {
    for (int k = 0; k < row.operand_count; ++k) {
      const View& view = row.operands[k];
      if (view.count > 0) ranges_.push_back({view.data, view.data + view.extent(), k != 1 || grads_are_written});
    }
  }
  std::sort(ranges_.begin(), ranges_.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  const char *end = nullptr, *written_end = nullptr;
  for (const Range& range : ranges_) {
    if (range.begin < (range.written ? end : written_end)) return true;
    end = std::max(end, range.end);
    if (range.written) written_end = std::max(written_end, range.end);
  }
  return false;
}

void Plan::build_tasks(bool zero_in_pass) {
  tasks_.clear();
  constants_.clear();
  layouts_.clear();
  layout_numbers_.clear();
  tasks_.reserve(rows_.size());
  constants_.reserve(rows_.size());  // tasks point into it

  const Row* folded = nullptr;  // the row whose constants stand last in constants_
  double folded_step = 0;
  for (const Row& row : rows_) {
    double step = 1;
    if (row.step != nullptr) {
      step = row.step_is_double ? *reinterpret_cast<double*>(row.step) + 1
                                : double(*reinterpret_cast<float*>(row.step) + 1);
    }
    const bool same = folded != nullptr && folded->group == row.group && folded_step == step &&
                      (folded->dtype == DType::f64) == (row.dtype == DType::f64);
    if (!same) {
      rule_.fold(row.group->options, step, row.dtype, constants_.emplace_back());
      folded = &row;
      folded_step = step;
    }
    const View& param = row.operands[0];
    Task& task = tasks_.emplace_back();
    task.rule = rule_.index;
    task.variant = row.variant;
    task.dtype = row.dtype;
    task.operand_count = row.operand_count;
    task.constants = constants_.back().bytes;
    task.count = param.count;
    task.layout = nullptr;
    task.maximize = row.group->maximize;
    task.zero_grad = zero_in_pass;
    bool flat = param.dense();
    for (int k = 0; k < row.operand_count; ++k) {
      task.operands[k] = row.operands[k].data;
      flat = flat && row.operands[k].same_strides(param);
    }
    if (!flat) add_layout(row, task);
  }
}

void Plan::add_layout(const Row& row, Task& task) {
  const View& param = row.operands[0];
  std::vector<int64_t>& numbers = layout_numbers_.emplace_back(param.sizes, param.sizes + param.ndim);
  for (int k = 0; k < row.operand_count; ++k) {
    numbers.insert(numbers.end(), row.operands[k].strides, row.operands[k].strides + param.ndim);
  }
  task.layout = &layouts_.emplace_back(Layout{param.ndim, numbers.data(), numbers.data() + param.ndim});
}

void Plan::check_zeroable() const {
  for (const Row& row : rows_) {
    const View& grad = row.operands[1];
    if (!grad.dense() && !grad.disjoint()) {
      throw std::runtime_error(
          "unsupported operation: more than one element of the written-to tensor refers to a single memory location. "
          "Please clone() the tensor before performing the operation: a gradient of shape " +
          shape_text(grad) + " cannot be zeroed; use zero_grad=\"to_none\"");
    }
    // As Optimizer.zero_grad does: a gradient that autograd still follows is cut off first.
    if (Torch::get().requires_grad(row.grad)) {
      row.grad.attr("grad_fn").is_none() ? row.grad.attr("requires_grad_")(false) : row.grad.attr("detach_")();
    }
  }
}

void Plan::adopt_fresh_state(py::dict state) {
  for (const Row& row : rows_) {
    if (!row.fresh) continue;
    PyObject* existing = find_by_identity(state.ptr(), row.param.ptr());
    const int failed = existing != nullptr ? PyDict_Update(existing, row.state.ptr())
                                           : PyDict_SetItem(state.ptr(), row.param.ptr(), row.state.ptr());
    if (failed != 0) throw py::error_already_set();
  }
}

}  // namespace fusedoptim::python
