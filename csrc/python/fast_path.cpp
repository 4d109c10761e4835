#include "python/fast_path.h"

#include <algorithm>
#include <cmath>

#include "core/clip.h"
#include "core/nan.h"
#include "core/sum.h"
#include "cpu/grads.h"
#include "python/torch.h"
#include "python/zero_grad.h"

namespace fusedoptim::python {

bool FastPath::fast_step(py::handle optimizer, const cpu::InstructionSet& set, bool zero_grad, const double* grad_scale,
                         bool set_grads_to_none, const std::vector<double>* clips, Measured* measured) {
  all_general_ = TensorLayout::get() == nullptr;
  if (all_general_ || in_use_ || !odd_.empty()) return false;
  const Attributes attributes(optimizer);
  const py::object& groups = attributes.groups;
  const py::object& state = attributes.state;
  if (!groups || !PyList_CheckExact(groups.ptr()) || !torch_parts_.are_unchanged(optimizer, attributes)) return false;
  const Use use(*this);
  struct Forgotten {  // however this ends
    FastPath& path;
    ~Forgotten() { path.forget(); }
  } const forgotten{*this};
  RunOptions options;
  options.threads = Torch::get().threads();
  options.zero_grad = zero_grad;
  options.unscale = grad_scale != nullptr;
  if (options.unscale) options.grad_scale = canonicalize_nan(*grad_scale);
  const bool grads_are_written = zero_grad || options.unscale;
  if (!read_groups(groups, clips, measured != nullptr)) return false;

  ranges_.begin();
  if (!look(state.ptr(), zero_grad)) return false;
  if (ranges_.overlap(grads_are_written)) return all_general_ = true, false;
  options.backwards = reverse_order_ = !reverse_order_;
  schedule_.plan(fast_tasks_.data(), fast_count_, options);
  const bool others_run = schedule_.elements() >= kElementsPerRelease * int64_t(fast_count_);
  if (others_run && !own_fast_rows()) return false;
  const auto take = [&] {
    if (measured != nullptr && !clip_fast_rows(options, set, *measured)) return false;
    if (measured != nullptr && measured->is_skipped) return true;
    write_fast_numbers();
    schedule_.run(set);
    return true;
  };
  if (others_run) {
    const py::gil_scoped_release released;
    if (!take()) return false;
  } else if (!take()) {
    return false;
  }
  if (measured != nullptr && measured->is_skipped) return true;
  bump_fast_versions(grads_are_written);
  write_group_numbers();
  if (set_grads_to_none) python::set_grads_to_none(py::reinterpret_borrow<py::iterable>(groups));
  return true;
}

// Only this part may run Python code, as reading a learning rate from a tensor does; no tensor has been looked at yet.
bool FastPath::read_groups(py::handle groups, const std::vector<double>* clips, bool may_measure) {
  uint32_t first_param = 0;
  for (Py_ssize_t g = 0; g < PyList_GET_SIZE(groups.ptr()); ++g) {
    const py::object dict = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(groups.ptr(), g));
    const GroupReader reader(dict, int(g));
    if (!reader.has_list()) return !(all_general_ = true);  // it may yield its parameters only once
    if (!reader.is_transparent() || reader.asks_for_torch()) return false;
    const bool has_settings = reader.may_have_settings();
    Group& group = groups_.emplace_back();
    if (has_settings && clips == nullptr &&
        !(reader.clipping(group.limit, group.skips) && (may_measure || !(group.limit || group.skips))))
      return false;
    group.index = int(g);
    group.params = reader.params();
    group.dict = dict;
    group.factor = reader.flag("maximize") ? -1 : 1;
    if (clips != nullptr) group.factor *= clip_of(*clips, g);
    group.averages = has_settings && reader.average(group.average_weight);
    if (has_settings) reader.storage(rule_, group.storage);
    group.first_param = first_param;
    first_param += uint32_t(PyList_GET_SIZE(group.params.ptr()));
    rule_.read(GroupReader(dict, int(g), &group.on_device), group.options);
    if (!group.on_device.empty()) return false;
    group.step = rule_.step_of_group(group.options);
    note_group_numbers(dict, group.options);
  }
  return true;
}

// Torch's getter makes Python objects of gradients that have none, and runs a TorchFunctionMode if one is active, which
// might exchange what was seen.
bool FastPath::own_fast_rows() {
  const Torch& torch = Torch::get();
  const TensorLayout& layout = *TensorLayout::get();
  if (torch.runs_function_modes()) return !(all_general_ = true);
  const NoCollection no_collection;  // which making objects may start
  for (size_t i = 0; i < fast_count_; ++i) {
    const Row& row = fast_rows_[i];
    kept_.push_back(py::reinterpret_borrow<py::object>(row.object));
    kept_.push_back(torch.grad(row.object));
    if (!torch.is_plain(kept_.back().ptr()) || !(layout.impl(kept_.back().ptr()) == row.grad))
      return !(all_general_ = true);
    for (int k = 0; k < row.entry_count; ++k) kept_.push_back(py::reinterpret_borrow<py::object>(row.entries[k]));
  }
  return true;
}

bool FastPath::clip_fast_rows(const RunOptions& options, const cpu::InstructionSet& set, Measured& measured) {
  const auto any = [&](const auto& test) { return std::any_of(groups_.begin(), groups_.end(), test); };
  const bool skips = measured.may_skip || any([](const Group& group) { return group.skips; });
  measured.is_clipped = any([](const Group& group) { return group.limit.has_value(); });
  if (!measured.is_clipped && !skips) return true;
  const TensorLayout& layout = *TensorLayout::get();
  // The norm is of all gradients whose groups have a limit. Whether a step is skipped is up to the others as well.
  std::vector<cpu::Grad> grads;
  size_t limited = 0;
  for (const bool has_limit : {true, false}) {
    for (const Group& group : groups_) {
      if (group.limit.has_value() != has_limit || !(has_limit || skips)) continue;
      for (size_t i = group.fast_begin; i < group.fast_end; ++i) {
        const Task& task = fast_tasks_[i];
        if (!layout.is_row_major(fast_rows_[i].grad)) return false;  // elements are added in the order of rows
        grads.push_back({task.operands[1], task.count, task.dtype_of(1), nullptr});
        if (has_limit) measured.dtypes[size_t(task.dtype_of(1))] = true;
      }
    }
    if (has_limit) limited = grads.size();
  }
  std::vector<double> sums(grads.size());
  cpu::sum_squares(grads, options.unscale ? &options.grad_scale : nullptr, options.threads, set, sums.data());
  const double squares = ordered_sum(sums.data(), int64_t(limited));
  const double rest = ordered_sum(sums.data() + limited, int64_t(sums.size() - limited));
  if (!std::isfinite(squares) || !std::isfinite(rest)) {
    const auto is_wide = [](const cpu::Grad& grad) { return grad.dtype == DType::f64; };
    if (std::any_of(grads.begin(), grads.end(), is_wide)) return false;
    measured.is_skipped = skips;
  }
  measured.norm = std::sqrt(squares);
  for (const Group& group : groups_) {
    if (!group.limit) continue;
    const double clip = canonicalize_nan(clip_coefficient(measured.norm, *group.limit));
    for (size_t i = group.fast_begin; i < group.fast_end; ++i) fast_tasks_[i].factor *= clip;
  }
  return true;
}

void FastPath::write_fast_numbers() const {
  for (size_t i = 0; i < fast_count_; ++i) fast_rows_[i].numbers.step.write();
  for (int k = 0; k < rule_.number_count; ++k) {
    for (size_t i = 0; i < fast_count_; ++i) fast_rows_[i].numbers.others[k].write();
  }
}

void FastPath::bump_fast_versions(bool grads_are_written) const {
  const TensorLayout* const layout = TensorLayout::get();  // null only where there are no rows
  for (size_t i = 0; i < fast_count_; ++i) {
    layout->bump_version(fast_rows_[i].param);
    if (grads_are_written) layout->bump_version(fast_rows_[i].grad);
  }
}

}  // namespace fusedoptim::python
