// The first half of a step: everything is read and checked, nothing is changed.
#include <algorithm>

#include "python/general_path.h"
#include "python/mappings.h"
#include "python/torch.h"

namespace fusedoptim::python {
namespace {

std::string describe(py::handle group, py::ssize_t group_index, py::ssize_t index, py::handle param) {
  std::string text = "parameter " + std::to_string(index) + " of group " + std::to_string(group_index) + " (";
  if (group.contains("param_names")) text += "'" + std::string(py::str(group["param_names"][py::int_(index)])) + "', ";
  return text + "shape " + std::string(py::str(py::tuple(py::list(param.attr("shape"))))) + ", " +
         std::string(py::str(param.attr("dtype"))) + ", " + std::string(py::str(param.attr("device"))) + ")";
}

[[noreturn]] void refuse(const char* reason, const std::string& param) {
  throw std::runtime_error("`fused=True` requires all the params to be floating point Tensors of supported devices: " +
                           std::string(cuda::built() ? "['cpu', 'cuda']" : "['cpu']") + " but " + param +
                           " cannot be taken by the fused kernels: " + reason +
                           // Torch's own implementations do not all take sparse gradients.
                           (reason == kSparseGrad ? "; use SparseAdam, or SGD without fused=True"
                                                  : "; with fused=None torch's own implementation takes it"));
}

// Said here in few words: pybind11's own error would print every parameter.
void check_dict(const py::object& state) {
  if (PyDict_Check(state.ptr())) return;
  throw py::type_error(std::string("the optimizer's state must be a dict, got ") + Py_TYPE(state.ptr())->tp_name);
}

}  // namespace

py::object GeneralPath::prepare(py::iterable groups, py::object state, py::object new_state, bool write_grads,
                                const std::vector<double>& clips, const Limits& limits) {
  const Use use(*this);
  forget();
  ranges_.begin();
  check_dict(state);
  py::list left_to_torch;
  bool any_left = false;
  uint32_t first_param = 0;
  int g = -1;
  for (const py::handle each : groups) {
    const py::object dict = py::reinterpret_borrow<py::object>(each);
    const GroupReader reader(dict, ++g);
    const py::object params = reader.params();
    Group* const group = reader.asks_for_torch() ? nullptr : &read_group(reader, dict, params, g, clips, limits);
    if (group != nullptr) group->first_param = first_param;
    if (rule_.group_number_count > 0) {  // which also say whether the next step is another one
      Options options;
      rule_.read(reader, options);
      note_group_numbers(dict, options);
      skipped_by_host_ = true;
    }
    first_param += uint32_t(PyList_GET_SIZE(params.ptr()));
    const bool all = all_general_ || group == nullptr || !group->on_device.empty() || !reader.has_list();
    if (group != nullptr) group->all_general = all;
    py::list left;
    size_t next_odd = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params.ptr()); ++i) {
      const Position position{g, i, PyList_GET_ITEM(params.ptr(), i)};
      if (!all && !is_odd(position, next_odd)) {
        skipped_by_host_ = left_for_fast_path_ = true;  // all of these are on the host
        continue;
      }
      const py::object param = py::reinterpret_borrow<py::object>(position.param);
      py::object grad = Torch::get().grad(param);
      if (grad.is_none() || prepare_param(group, dict, position, std::move(grad), state, new_state, write_grads))
        continue;
      left.append(param);
      any_left = true;
    }
    left_to_torch.append(left);
  }
  prepared_ = true;
  return any_left ? py::object(left_to_torch) : py::none();
}

Group& GeneralPath::read_group(const GroupReader& reader, const py::object& dict, const py::object& params, int index,
                               const std::vector<double>& clips, const Limits& limits) {
  Group& group = groups_.emplace_back();
  group.index = index;
  group.dict = dict;
  group.params = params;
  group.factor = (reader.flag("maximize") ? -1 : 1) * clip_of(clips, index);
  if (limits.norm != nullptr && limits.of_groups.at(size_t(index))) {
    group.norm = limits.norm;
    group.max_norm = *limits.of_groups[size_t(index)];
    group.norm_device = limits.device;
  }
  if (!reader.is_transparent() || reader.may_have_settings()) {
    group.averages = reader.average(group.average_weight);
    reader.storage(rule_, group.storage);
  }
  group.strict = reader.flag("fused");
  rule_.read(GroupReader(dict, index, &group.on_device), group.options);
  group.step = rule_.step_of_group(group.options);
  return group;
}

bool GeneralPath::prepare_param(Group* group, py::handle dict, const Position& position, py::object grad,
                                py::handle state, py::handle new_state, bool write_grads) {
  const auto note = [&](const char* why, const std::string& error) {
    reasons_->push_back({position.group, position.index, why, error});
    return true;
  };
  if (group == nullptr) return reasons_ != nullptr && note("its group asks for torch's own implementation", "");
  const py::handle param = position.param;
  const char* reason;
  try {
    const py::object own = py::reinterpret_borrow<py::object>(find_by_identity(state.ptr(), param.ptr()));
    reason = add(*group, position, std::move(grad), own.ptr(), new_state, write_grads);
  } catch (const ParamError& error) {
    if (reasons_ != nullptr) return note(nullptr, error.text);
    const std::string where = describe(dict, position.group, position.index, param);
    PyErr_SetString(error.type, (error.text + " in " + where).c_str());
    throw py::error_already_set();
  }
  const bool is_refused = reason != nullptr && group->strict && !is_for_torch_alone(reason);
  if (reasons_ != nullptr) return note(reason, is_refused ? std::string("fused=True, but ") + reason : "");
  if (is_refused) refuse(reason, describe(dict, position.group, position.index, param));
  return reason == nullptr;
}

const char* GeneralPath::add(Group& group, const Position& position, py::object grad, PyObject* state,
                             py::handle new_state, bool write_grads) {
  const py::handle param = position.param;
  LocalPair local;
  if (const char* reason = local.open(param, grad)) return reason;
  if (local.is_sharded) kept_.insert(kept_.end(), {local.param, local.grad});
  Views views;
  if (const char* reason = read_param_and_grad(local, driver_, views)) return reason;
  const DType dtype = *views[0].dtype;

  PreparedParam row;
  row.group = &group;
  row.param = py::reinterpret_borrow<py::object>(param);
  row.numbers.step.next = group.step;
  int variant = rule_.variant(group.options, dtype, false);
  const Owned& owned = row.owned = owned_by(group, variant, dtype);
  if (owned.named > 0) {
    if (state != nullptr && !is_transparent(state) && PyObject_HasAttrString(state, "keys")) return kStateOfItsOwn;
    const bool python_ran = find_or_make_state(row, state, new_state, dtype, variant) || local.is_sharded;
    PyObject* entries[kMaxEntries];
    std::copy(row.entries, row.entries + owned.named, entries);
    PyObject* const* const names = names_of(group, owned);
    if (const char* reason = open_states(local, names, owned.tensors, entries, kept_)) return reason;
    if (python_ran) {  // it may have changed what the views borrow
      if (const char* reason = read_param_and_grad(local, driver_, views)) return reason;
      if (views[0].dtype != dtype)
        throw ParamError{PyExc_RuntimeError, "the dtype was changed while the step was being prepared"};
    }
    if (const char* reason = read_states(names, owned.tensors, entries, views)) return reason;
    if (const char* reason = prepare_numbers(entries, views[0], row)) return reason;
  }
  bool is_uniform = owned.companion == Companion::none && !group.storage.is_any;
  for (int k = 1; k < 2 + owned.tensors; ++k) is_uniform = is_uniform && views[k].dtype == dtype;
  if (!is_uniform) {
    DType dtypes[kMaxOperands];
    for (int k = 0; k < 2 + owned.tensors; ++k) dtypes[k] = *views[k].dtype;
    if (const char* reason = check_dtypes(dtypes, owned)) return reason;
    if (const char* reason = read_scales(row, state, local, views)) return reason;
  }
  if (write_grads && views[1].count > 0 && !views[1].dense() && !views[1].disjoint()) {
    throw ParamError{
        PyExc_RuntimeError,
        std::string(kSharedElements) + " a gradient to be zeroed (zero_grad=\"to_none\" can drop it) or unscaled"};
  }
  row.on_device = views[0].is_on_cuda();
  if (!row.on_device) skipped_by_host_ = true;
  if (group.norm != nullptr && (row.on_device ? views[0].device.index : kHost) != group.norm_device)
    throw ParamError{PyExc_RuntimeError, "the gradient was moved to another device since its norm was measured"};
  row.hash = hash_of(param.ptr());
  row.grad = std::move(grad);
  if (const char* reason =
          add_task(row, local, views, variant, is_uniform, group.first_param + uint32_t(position.index)))
    return reason;
  rows_.push_back(std::move(row));
  return nullptr;
}

void GeneralPath::clear() {
  const Use use(*this);
  forget();
}

void GeneralPath::forget() {
  StepBase::forget();
  prepared_ = left_for_fast_path_ = skipped_by_host_ = false;
  rows_.clear();
  new_state_.clear();
  tasks_.clear();
  device_tasks_.clear();
  device_options_.clear();
  snapshots_.clear();
  layouts_.clear();
}

}  // namespace fusedoptim::python
