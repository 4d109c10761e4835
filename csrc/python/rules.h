// The rules behind one plain interface, so that reading groups and building tasks is written once for all of them.
#pragma once

#include <pybind11/pybind11.h>

#include "core/dtype.h"

namespace fusedoptim::python {

// Reads numbers from a param group (a dict). Tensors with one element count as numbers.
class GroupReader {
 public:
  explicit GroupReader(pybind11::handle group) : group_(group) {}
  void operator()(const char* name, double& out) const;
  void operator()(const char* name, double& first, double& second) const;  // a pair, such as betas
  void operator()(const char* name, bool& out) const;
  bool flag(const char* name) const;  // false where the group lacks it
  bool asks_for_torch() const;        // the user asked for torch's own implementation

 private:
  pybind11::handle group_;
};

constexpr size_t kMaxOptionBytes = 128;
constexpr size_t kMaxConstantBytes = 128;
struct Options {
  alignas(16) unsigned char bytes[kMaxOptionBytes];
};
struct Constants {
  alignas(16) unsigned char bytes[kMaxConstantBytes];
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
