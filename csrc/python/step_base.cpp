#include "python/step_base.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/nan.h"
#include "python/torch.h"

namespace fusedoptim::python {

double clip_of(const std::vector<double>& clips, Py_ssize_t group) {
  return size_t(group) < clips.size() ? canonicalize_nan(clips[size_t(group)]) : 1;
}

// Copied as bytes: a tensor over memory of another library may be unaligned.
double StateNumber::load() const {
  double wide = 0;
  float narrow = 0;
  is_double ? std::memcpy(&wide, at, sizeof(double)) : std::memcpy(&narrow, at, sizeof(float));
  return is_double ? wide : double(narrow);
}

bool StateNumber::see(double now) {
  const double before = std::exchange(seen, now);
  return now != before && (now == now || before == before);  // all NaNs are alike
}

bool StateNumber::read() { return see(load()); }
bool StepCount::read() { return see(rounded(load() + 1)); }

void StateNumber::write() const {
  if (!is_on_host()) return;
  const float narrow = float(next);
  is_double ? std::memcpy(at, &next, sizeof(double)) : std::memcpy(at, &narrow, sizeof(float));
}

StepBase::StepBase(const std::string& rule, TorchParts torch_parts)
    : rule_(find_rule(rule)),
      torch_parts_(std::move(torch_parts)),
      average_name_(intern("ema")),
      step_name_(intern("step")) {
  for (int k = 0; k < rule_.max_states; ++k) {
    names_.push_back(intern(rule_.states[k]));
    scale_names_.push_back(intern((std::string(rule_.states[k]) + "_scale").c_str()));
  }
  for (int i = 0; i < rule_.number_count; ++i) number_names_.push_back(intern(rule_.numbers[i]));
  for (int i = 0; i < kCompanions; ++i) companion_names_[i] = intern(name_of(Companion(i)));
}

void StepBase::forget() {
  kept_.clear();
  group_numbers_.clear();
  constants_.clear();
  groups_.clear();
  constants_group_ = nullptr;
}

const Owned& StepBase::find_owned(Group& group, int variant, DType param) const {
  const bool rounds = group.storage.stochastic && param == DType::bf16;
  const bool counts = rule_.counts_steps || (rounds && rule_.group_number_count == 0);
  set_owned(group, {uint8_t(rule_.states_of(variant)), group.averages, counts, group.storage.companion_of(param),
                    uint8_t(rule_.number_count)});
  group.owned_variant = variant;
  group.owned_param = param;
  return group.owned;
}

void StepBase::set_owned(Group& group, const Owned& owned) const {
  int place = 0;
  for (size_t k = 0; k < names_.size(); ++k) {
    if ((owned.kept >> k & 1) != 0) group.names[place++] = names_[k].ptr();
  }
  if (owned.averages) group.names[owned.average_at()] = average_name_.ptr();
  if (owned.companion != Companion::none)
    group.names[owned.companion_at()] = companion_names_[int(owned.companion)].ptr();
  if (owned.counts) group.names[owned.step_at()] = step_name_.ptr();
  for (int i = 0; i < owned.numbers; ++i) group.names[owned.number_at(i)] = number_names_[size_t(i)].ptr();
  group.owned = owned;
  group.owned_variant = -1;
}

// The dict is walked and not asked, since what compares its keys may be Python code.
bool StepBase::find_each(PyObject* own, PyObject* const* names, int wanted, PyObject** entries) {
  std::fill(entries, entries + wanted, nullptr);
  int found = 0;
  PyObject *key, *value;
  for (Py_ssize_t at = 0; PyDict_Next(own, &at, &key, &value);) {
    int k = 0;
    while (k < wanted && key != names[k]) ++k;
    if (k == wanted) {  // another name, or one that was read from a file
      for (k = 0; k < wanted && !(PyUnicode_CheckExact(key) && PyUnicode_Compare(key, names[k]) == 0);) ++k;
      if (k == wanted) continue;
    }
    entries[k] = value;
    if (++found == wanted) return true;
  }
  return false;
}

bool StepBase::find_scales(PyObject* own, const Owned& owned, unsigned states, PyObject** entries) const {
  PyObject* names[kMaxStates];
  int count = 0;
  for (int k = 0; k < owned.states; ++k) {
    if ((states >> k & 1) != 0) names[count++] = scale_names_[size_t(owned.state(k))].ptr();
  }
  return find_each(own, names, count, entries + owned.named);
}

void StepBase::note_group_numbers(const py::object& dict, const Options& options) {
  if (rule_.group_number_count == 0) return;
  double numbers[kMaxGroupNumbers];
  rule_.advance_group(options, numbers);
  auto& [group, made] = group_numbers_.emplace_back();
  group = dict;
  for (int i = 0; i < rule_.group_number_count; ++i) {
    const py::object before = dict[rule_.group_numbers[i]];
    const bool is_whole = PyLong_Check(before.ptr()) && std::floor(numbers[i]) == numbers[i];
    made[size_t(i)] = is_whole ? py::object(py::int_(int64_t(numbers[i]))) : py::object(py::float_(numbers[i]));
  }
}

void StepBase::write_group_numbers() const {
  for (const auto& [group, made] : group_numbers_) {
    for (int i = 0; i < rule_.group_number_count; ++i) group[rule_.group_numbers[i]] = made[size_t(i)];
  }
}

void StepBase::make_constants(Group& group, StateNumbers& numbers, DType dtype) {
  if (!group.on_device.empty() && !group.complete) {
    group.complete = std::make_unique<Options>();
    rule_.read(GroupReader(group.dict, group.index), *group.complete);
  }
  const Options& options = group.complete ? *group.complete : group.options;
  Numbers now;
  now.step = canonicalize_nan(numbers.step.next);
  unsigned doubles = dtype == DType::f64 ? 1 : 0;  // how things are rounded
  for (int i = 0; i < rule_.number_count; ++i) {
    now.before[i] = canonicalize_nan(numbers.others[i].seen);
    doubles |= unsigned(numbers.others[i].is_double) << (i + 1);
  }
  const bool are_made = constants_group_ == &group && constants_doubles_ == doubles && now.same_before(constants_of_);
  if (!are_made) {
    rule_.advance(options, now);
    for (int i = 0; i < rule_.number_count; ++i) now.after[i] = numbers.others[i].rounded(now.after[i]);
    constants_group_ = &group;
    constants_doubles_ = doubles;
    constants_of_ = now;
    constants_fit_ = rule_.make_constants(options, now, dtype, constants_.emplace_back());
  }
  for (int i = 0; i < rule_.number_count; ++i) numbers.others[i].next = constants_of_.after[i];
}

}  // namespace fusedoptim::python
