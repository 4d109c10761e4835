// The look of the fast path, at torch's own objects.
#include <algorithm>

#include "python/fast_path.h"
#include "python/mappings.h"
#include "python/tensor_view.h"
#include "python/torch.h"

namespace fusedoptim::python {
namespace {

constexpr size_t kRowsAhead = 8;

// Whether the gradient of a plain parameter requires grad, as torch itself says of one that autograd has met: a view,
// of a bucket of all gradients for one. `grad`: its object, if it has one yet.
bool grad_requires_grad(PyObject* param, PyObject* grad) {
  const Torch& torch = Torch::get();
  if (torch.runs_function_modes()) return true;  // it would run Python code, which could exchange what was seen
  if (grad != nullptr) return torch.requires_grad(grad);
  const NoCollection no_collection;
  return torch.requires_grad(torch.grad(param));
}

bool is_dense(TensorImplRef tensor) {
  const TensorLayout& layout = *TensorLayout::get();
  const int ndim = int(layout.ndim(tensor));
  const int64_t *sizes = layout.sizes(tensor), *strides = layout.strides(tensor);
  int64_t last = 0;
  for (int d = 0; d < ndim; ++d) last += (sizes[d] - 1) * strides[d];
  return layout.count(tensor) == last + 1 && are_disjoint(ndim, sizes, strides);
}

}  // namespace

bool FastPath::look(PyObject* state, bool zero_grad) {
  const Torch& torch = Torch::get();
  const TensorLayout& layout = *TensorLayout::get();
  fast_count_ = 0;
  dict_cache_.begin();
  size_t next_odd = 0;
  std::vector<Position> found;
  for (Group& group : groups_) {
    if (group.all_general) continue;
    group.fast_begin = fast_count_;
    PyObject* const* items = PySequence_Fast_ITEMS(group.params.ptr());
    const Py_ssize_t size = PyList_GET_SIZE(group.params.ptr());
    for (Py_ssize_t i = 0; i < size; ++i) {
      const Position position{group.index, i, items[i]};
      if (!odd_.empty() && is_odd(position, next_odd)) continue;
      fetch_ahead(fast_count_ + kRowsAhead);
      if (!torch.is_plain(items[i])) {
        found.push_back(position);
        continue;
      }
      const TensorImplRef param = layout.impl(items[i]), grad = layout.grad(param);
      if (!grad) continue;
      if (fast_count_ == fast_rows_.size()) {
        fast_rows_.emplace_back();
        fast_tasks_.emplace_back();
      }
      Row& row = fast_rows_[fast_count_];
      row.object = items[i];
      row.param = param;
      row.grad = grad;
      if (look_at(group, i, row, fast_tasks_[fast_count_], state, zero_grad) == nullptr) {
        ++fast_count_;
      } else {
        found.push_back(position);
      }
    }
    group.fast_end = fast_count_;
  }
  if (found.empty()) return true;
  odd_.insert(odd_.end(), found.begin(), found.end());
  std::sort(odd_.begin(), odd_.end());
  return false;
}

bool FastPath::is_odd(const Position& position, size_t& next) const {
  while (next < odd_.size() && odd_[next] < position) ++next;
  return next < odd_.size() && odd_[next] == position;
}

// What the last step read in a later row is probably what this one will: a hint, to which no harm can be.
void FastPath::fetch_ahead(size_t row) const {
  if (row >= fast_rows_.size()) return;
  const TensorLayout& layout = *TensorLayout::get();
  const Row& then = fast_rows_[row];
  __builtin_prefetch(then.object);
  layout.prefetch(then.param);
  layout.prefetch(then.grad);
  for (int k = 0; k <= kMaxStates; ++k) {
    __builtin_prefetch(then.entries[k]);
    layout.prefetch(then.impls[k]);
  }
}

const char* FastPath::look_at(Group& group, Py_ssize_t index, Row& row, Task& task, PyObject* state, bool zero_grad) {
  const Torch& torch = Torch::get();
  const TensorLayout& layout = *TensorLayout::get();
  DType dtype;
  if (!layout.is_plain_strided(row.param)) return "it is not a plain strided CPU tensor of up to five dimensions";
  if (!layout.is_plain_strided(row.grad))
    return "its gradient is not a plain strided CPU tensor of up to five dimensions";
  if (!layout.dtype(row.param, dtype) || !is_number(dtype))
    return "its dtype is not float64, float32, bfloat16 or float16";
  if (!layout.same_geometry(row.param, row.grad)) return "its gradient has another shape or strides";
  if (PyObject* seen = layout.object(row.grad); seen != nullptr && !torch.is_plain(seen))
    return "its gradient is a tensor subclass";
  if (zero_grad && layout.may_require_grad(row.grad) && grad_requires_grad(row.object, layout.object(row.grad)))
    return "autograd follows its gradient";
  if (!layout.is_row_major(row.param) && !is_dense(row.param)) return "its elements do not fill one stretch of memory";

  const int variant = rule_.variant(group.options, dtype, false);
  const Owned& owned = owned_by(group, variant, dtype);
  const int named = owned.named, tensors = owned.tensors;
  const int64_t count = layout.count(row.param);
  task.rule = rule_.index;
  task.variant = variant;
  task.dtype = dtype;
  task.operand_count = 2 + tensors;
  task.count = count;
  task.layout = nullptr;
  task.factor = group.factor;
  task.averages = group.averages;
  task.average_weight = group.average_weight;
  const int64_t item_size = int64_t(size_of(dtype)), bytes = count * item_size;
  bool is_uniform = true;
  const auto add = [&](int k, TensorImplRef tensor) __attribute__((always_inline)) {
    if (__builtin_expect(!layout.same_dtype(row.param, tensor), false)) {
      is_uniform = false;
      return add_of_other_dtype(k, tensor, task);
    }
    char* const data = layout.data(tensor, item_size);
    if (data == nullptr && bytes > 0) return false;
    task.operands[k] = data;
    ranges_.add(data, data + bytes, k == 1);
    return true;
  };
  if (!add(0, row.param) || !add(1, row.grad)) return "its memory or its gradient's is not plainly there";
  PyObject* own = nullptr;
  row.entry_count = named;
  if (!owned.counts) {
    row.numbers.step = {};
    row.numbers.step.next = group.step;
  }
  if (named > 0) {
    own = dict_cache_.find(state, fast_count_, row.object);
    if (own == nullptr) return "it has no state yet";
    if (!is_known_dict(own)) return "its state is not a dict";
    if (!find_each(own, group.names, named, row.entries)) return "its state is not complete";
    for (int k = 0; k < tensors; ++k) {
      if (!torch.is_plain(row.entries[k])) return "its state is not a plain tensor";
      const TensorImplRef tensor = row.impls[k] = layout.impl(row.entries[k]);
      if (!layout.is_plain_strided(tensor)) return "its state is not a plain strided CPU tensor";
      if (!layout.same_geometry(row.param, tensor)) return "its state has another shape or strides";
      if (!add(2 + k, tensor)) return "the memory of its state is not plainly there";
    }
    if (owned.counts) {
      const int k = owned.step_at();
      if (const char* reason = look_at_number(row.entries[k], row.impls[k], row.numbers.step)) return reason;
      row.numbers.step.next = row.numbers.step.seen;
      if (row.numbers.step.next <= 0) return "its step is negative";
    }
    for (int i = 0; i < owned.numbers; ++i) {
      const int k = owned.number_at(i);
      if (const char* reason = look_at_number(row.entries[k], row.impls[k], row.numbers.others[i])) return reason;
    }
  }
  task.mixed = false;
  if (!is_uniform || group.storage.is_any) {
    if (const char* reason = look_at_storage(group, index, own, row, task)) return reason;
  }
  task.constants = constants_for(group, row.numbers, dtype);
  return task.constants == nullptr ? "its options are too large for its arithmetic" : nullptr;
}

bool FastPath::add_of_other_dtype(int k, TensorImplRef tensor, Task& task) {
  const TensorLayout& layout = *TensorLayout::get();
  DType dtype;
  if (!layout.dtype(tensor, dtype)) return false;
  const int64_t size = int64_t(size_of(dtype));
  char* const data = layout.data(tensor, size);
  if (data == nullptr && task.count > 0) return false;
  task.operands[k] = data;
  ranges_.add(data, data + task.count * size, k == 1);
  return true;
}

// Fills what counts of a task whose operands are not all simply in the parameter's dtype.
__attribute__((cold)) const char* FastPath::look_at_storage(const Group& group, Py_ssize_t index, PyObject* own,
                                                            Row& row, Task& task) {
  const TensorLayout& layout = *TensorLayout::get();
  const Owned& owned = group.owned;
  for (int k = 0; k < task.operand_count; ++k) {
    const TensorImplRef tensor = k == 0 ? row.param : k == 1 ? row.grad : row.impls[k - 2];
    layout.dtype(tensor, task.dtypes[k]);
  }
  if (const char* reason = check_dtypes(task.dtypes, owned)) return reason;
  const bool is_numbered = describe_storage(task, owned, group.storage, rule_);
  if (is_numbered && !layout.is_row_major(row.param)) return "random bits or scales are numbered in the order of rows";
  task.parameter = group.first_param + uint32_t(index);
  task.first_element = 0;
  task.next_step = row.numbers.step.next;
  task.blocks = {};
  unsigned in_8bit = 0;
  for (int k = 0; k < owned.states; ++k) in_8bit |= unsigned(is_8bit(task.codings[2 + k])) << k;
  return in_8bit == 0 ? nullptr : look_at_scales(own, owned, in_8bit, row, task);
}

__attribute__((cold)) const char* FastPath::look_at_scales(PyObject* own, const Owned& owned, unsigned states, Row& row,
                                                           Task& task) {
  const TensorLayout& layout = *TensorLayout::get();
  const int ndim = int(layout.ndim(row.param));
  if (task.count == 0) return "it has no elements";
  task.blocks = blocks_of(ndim, layout.sizes(row.param), task.count);
  if (!find_scales(own, owned, states, row.entries)) return "its state is not complete";
  for (int k = 0; k < owned.states; ++k) {
    if ((states >> k & 1) == 0) continue;
    const int at = row.entry_count++;
    if (!Torch::get().is_plain(row.entries[at])) return "a scale of its state is not a plain tensor";
    const TensorImplRef tensor = row.impls[at] = layout.impl(row.entries[at]);
    DType dtype;
    if (!layout.is_plain_strided(tensor) || !layout.dtype(tensor, dtype) || dtype != DType::f32 ||
        layout.count(tensor) != task.blocks.of(task.count) || !layout.is_row_major(tensor))
      return "a scale of its state is not float32 in the order of rows, one for each block";
    char* const data = layout.data(tensor, sizeof(float));
    if (data == nullptr && task.count > 0) return "the memory of a scale is not plainly there";
    task.scales[2 + k] = reinterpret_cast<float*>(data);
    ranges_.add(data, data + layout.count(tensor) * int64_t(sizeof(float)), false);
  }
  return nullptr;
}

template <class Number>
const char* FastPath::look_at_number(PyObject* object, TensorImplRef& tensor, Number& out) {
  const TensorLayout& layout = *TensorLayout::get();
  DType dtype;
  if (!Torch::get().is_plain(object)) return "a number of its state is not a plain tensor";
  tensor = layout.impl(object);
  if (!layout.is_plain_strided(tensor) || layout.count(tensor) != 1 || !layout.dtype(tensor, dtype) ||
      (dtype != DType::f32 && dtype != DType::f64))
    return "a number of its state is not one float32 or float64 on the CPU";
  const int64_t size = int64_t(size_of(dtype));
  out.at = layout.data(tensor, size);
  if (out.at == nullptr) return "the memory of a number of its state is not plainly there";
  out.is_double = dtype == DType::f64;
  out.on_device = false;
  ranges_.add(out.at, out.at + size, false);
  out.read();
  return nullptr;
}

void FastPath::forget_odd(PyObject* state, bool zero_grad) {
  const TensorLayout& layout = *TensorLayout::get();
  dict_cache_.begin();  // for new state has come
  Row row;
  Task task;
  size_t next = 0;
  const auto is_plain = [&](Group& group, Py_ssize_t index, PyObject* param) {
    if (!Torch::get().is_plain(param)) return false;
    row.object = param;
    row.param = layout.impl(param);
    row.grad = layout.grad(row.param);
    return row.grad && look_at(group, index, row, task, state, zero_grad) == nullptr;
  };
  std::vector<Position> left;
  for (const Position& position : odd_) {
    while (next < groups_.size() && groups_[next].index < position.group) ++next;
    const bool has_group = next < groups_.size() && groups_[next].index == position.group;
    PyObject* const params = has_group ? groups_[next].params.ptr() : nullptr;
    if (params == nullptr || position.index >= PyList_GET_SIZE(params)) continue;
    PyObject* const param = PyList_GET_ITEM(params, position.index);
    if (param == position.param && !is_plain(groups_[next], position.index, param)) left.push_back(position);
  }
  odd_.swap(left);
}

}  // namespace fusedoptim::python
