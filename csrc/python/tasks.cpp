// What was prepared of a parameter, as a task for the drivers.
#include <algorithm>

#include "python/general_path.h"
#include "python/torch.h"

namespace fusedoptim::python {
namespace {

// "lr=0.1, momentum=0.9"
std::string numbers_of(const py::object& group) {
  std::string text;
  for (const auto& [name, value] : py::dict(group)) {
    const bool is_number = PyFloat_Check(value.ptr()) || (PyLong_Check(value.ptr()) && !PyBool_Check(value.ptr()));
    if (!is_number && !(Torch::get().is_plain(value.ptr()) && py::cast<int64_t>(value.attr("numel")()) == 1)) continue;
    text += (text.empty() ? "" : ", ") + std::string(py::str(name)) + "=" +
            std::string(py::str(is_number ? py::reinterpret_borrow<py::object>(value) : value.attr("item")()));
  }
  return text;
}

}  // namespace

const char* GeneralPath::add_task(PreparedParam& row, const LocalPair& local, const Views& views, int variant,
                                  bool is_uniform, uint32_t number) {
  const TensorView& param = views[0];
  Group& group = *row.group;
  std::vector<Task>& tasks = row.on_device ? device_tasks_ : tasks_;
  row.task = tasks.size();
  Task& task = tasks.emplace_back();
  task.rule = rule_.index;
  task.variant = variant;
  task.dtype = *param.dtype;
  task.operand_count = 2 + row.owned.tensors;
  task.count = param.count;
  task.factor = group.factor;
  task.norm = group.norm;
  task.max_norm = group.max_norm;
  task.averages = group.averages;
  task.average_is_new = row.average_is_new();
  task.average_weight = group.average_weight;
  task.next_step = row.numbers.step.next;
  bool is_numbered = false;
  if (!is_uniform) {
    for (int k = 0; k < task.operand_count; ++k) task.dtypes[k] = *views[k].dtype;
    is_numbered = describe_storage(task, row.owned, group.storage, rule_);
  }
  if (is_numbered) {
    task.parameter = number;
    if (row.in_8bit != 0) task.blocks = blocks_of(param.ndim, param.sizes, param.count);
    if (local.is_sharded && !local.whole.first_element(param.ndim, param.sizes, task.first_element)) {
      tasks.pop_back();
      return "random bits are numbered in the whole tensor, of which this process has more than some rows";
    }
  }
  if (row.on_device) task.device = param.device.index;
  const auto as_device_number = [](const StateNumber& number) { return DeviceNumber{number.at, number.is_double, 0}; };
  if (row.numbers.step.on_device) {
    task.step = as_device_number(row.numbers.step);
    std::transform(row.numbers.others, row.numbers.others + kMaxNumbers, task.numbers, as_device_number);
    for (int i = 0; i < row.owned.numbers; ++i) {  // one that two parameters share advances with each, in their order
      const StateNumber& number = row.numbers.others[i];
      ranges_.add(number.at, number.at + (number.is_double ? sizeof(double) : sizeof(float)), false);
    }
  }
  // Numbers that lie on the host, those that the device would need with them do as well.
  const bool has_all = rule_.number_count == 0 && row.on_device && !group.on_device.empty();
  if (row.numbers.step.on_device || has_all) {
    task.device_options = options_on(group, row.param, task.device);
  } else {
    task.constants = checked_constants(group, row.numbers, task.dtype);
  }
  bool flat = param.dense() && (param.row_major || !is_numbered);
  for (int k = 0; k < task.operand_count; ++k) {
    task.operands[k] = views[k].data;
    flat = flat && views[k].same_strides(param);
    add_range(views[k], k == 1);
  }
  for (int k = 0; k < row.owned.states; ++k) {
    if ((row.in_8bit >> k & 1) == 0) continue;
    task.scales[2 + k] = reinterpret_cast<float*>(scale_views_[k].data);
    add_range(scale_views_[k], false);
  }
  if (!flat) task.layout = layouts_.add(views, task.operand_count);
  return nullptr;
}

const void* GeneralPath::checked_constants(Group& group, StateNumbers& numbers, DType dtype) {
  const void* constants = constants_for(group, numbers, dtype);
  if (constants != nullptr) return constants;
  throw ParamError{PyExc_RuntimeError, "value cannot be converted to type float without overflow: parameter group " +
                                           std::to_string(group.index) + " has " + numbers_of(group.dict) +
                                           ", which give a number beyond float32, in which the arithmetic is,"};
}

// The numbers of a parameter that is listed twice advance with each time.
void GeneralPath::advance_shared_numbers() {
  std::unordered_map<const char*, double> last;
  for (PreparedParam& row : rows_) {
    StepCount& step = row.numbers.step;
    if (!step.is_on_host()) continue;
    const auto [found, first] = last.try_emplace(step.at, step.next);
    if (!first) step.next = found->second = step.rounded(found->second + 1);
    bool any_shared = !first;
    for (int i = 0; i < row.owned.numbers; ++i) {
      StateNumber& number = row.numbers.others[i];
      const auto before = last.find(number.at);
      if (before == last.end()) continue;
      number.seen = before->second;
      any_shared = true;
    }
    if (any_shared) {
      Task& task = (row.on_device ? device_tasks_ : tasks_)[row.task];
      task.next_step = step.next;
      if (task.device_options == nullptr) task.constants = checked_constants(*row.group, row.numbers, task.dtype);
    }
    for (int i = 0; i < row.owned.numbers; ++i) last[row.numbers.others[i].at] = row.numbers.others[i].next;
  }
}

}  // namespace fusedoptim::python
