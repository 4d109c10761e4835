// The rules behind one plain interface, so that reading groups and building tasks is written once for all of them.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "core/task.h"
#include "rules/rule.h"

namespace fusedoptim::python {

struct Options {
  alignas(16) unsigned char bytes[kMaxFoldBytes];
};
struct Constants {
  alignas(16) unsigned char bytes[kMaxFoldBytes];
};

// x, and for any NaN the usual one, as whatever the kernels compute with must be: see nearest_bf16.
double usual_if_nan(double x);

// An option that was left on its CUDA device: a tensor in place of a double of the rule's options.
struct OptionOnDevice {
  pybind11::object tensor;
  const double* place;
};

// Reads numbers from a param group (a dict). Tensors with one element count as numbers; those on a CUDA device stay
// there, as entries of `on_device`, if that is not null and the rule lets them.
class GroupReader {
 public:
  explicit GroupReader(pybind11::handle group, std::vector<OptionOnDevice>* on_device = nullptr)
      : group_(group), on_device_(on_device) {}
  void operator()(const char* name, double& out) const;
  void operator()(const char* name, double& out, OnDevice) const;
  void operator()(const char* name, double& first, double& second) const;  // a pair, such as betas
  void operator()(const char* name, double& first, double& second, OnDevice) const;
  void operator()(const char* name, bool& out) const;
  bool flag(const char* name) const;              // false where the group lacks it
  pybind11::object list(const char* name) const;  // null if it is none
  bool asks_for_torch() const;                    // the user asked for torch's own implementation

 private:
  double number(pybind11::handle value, const char* name, const double* place, bool may_stay) const;
  void pair(const char* name, double& first, double& second, bool may_stay) const;

  pybind11::handle group_;
  std::vector<OptionOnDevice>* on_device_;
};

struct RuleEntry {
  int index;  // in AllRules
  const char* name;
  const char* const* states;
  int max_states;
  bool counts_steps;
  void (*read)(const GroupReader&, Options&);
  int (*variant)(const Options&, DType, bool first);
  int (*states_of)(int variant);
  void (*fold)(const Options&, double step, DType, Constants&);
};

const RuleEntry& find_rule(const std::string& name);  // raises KeyError, naming the rules that there are

}  // namespace fusedoptim::python
