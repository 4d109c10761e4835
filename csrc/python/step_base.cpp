#include "python/step_base.h"

#include <algorithm>
#include <cstring>

#include "core/nan.h"
#include "python/torch.h"

namespace fusedoptim::python {

double clip_of(const std::vector<double>& clips, Py_ssize_t group) {
  return size_t(group) < clips.size() ? canonicalize_nan(clips[size_t(group)]) : 1;
}

// Copied as bytes: a tensor over memory of another library may be unaligned.
bool StepCount::read() {
  const double before = seen;
  double count = 0;
  float narrow = 0;
  is_double ? std::memcpy(&count, at, sizeof(double)) : std::memcpy(&narrow, at, sizeof(float));
  seen = is_double ? count + 1 : double(narrow + 1);
  return seen != before && (seen == seen || before == before);  // all NaNs are alike
}

void StepCount::write() const {
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
  for (int i = 0; i < kCompanions; ++i) companion_names_[i] = intern(name_of(Companion(i)));
}

void StepBase::forget() {
  kept_.clear();
  constants_.clear();
  groups_.clear();
  constants_group_ = nullptr;
}

const Owned& StepBase::find_owned(Group& group, int variant, DType param) const {
  const bool rounds = group.storage.stochastic && param == DType::bf16;
  set_owned(group, {uint8_t(rule_.states_of(variant)), group.averages, rule_.counts_steps || rounds,
                    group.storage.companion_of(param)});
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

const void* StepBase::constants_for(Group& group, double step, DType dtype) {
  const bool wide = dtype == DType::f64;
  if (constants_group_ != &group || constants_step_ != step || constants_are_double_ != wide) {
    if (!group.on_device.empty() && !group.complete) {
      group.complete = std::make_unique<Options>();
      rule_.read(GroupReader(group.dict, group.index), *group.complete);
    }
    const Options& options = group.complete ? *group.complete : group.options;
    constants_fit_ = rule_.make_constants(options, step, dtype, constants_.emplace_back());
    constants_group_ = &group;
    constants_step_ = step;
    constants_are_double_ = wide;
  }
  return constants_fit_ ? constants_.back().bytes : nullptr;
}

}  // namespace fusedoptim::python
