// The rules behind one plain interface, so that reading groups and building tasks is written once for all of them.
#pragma once

#include <string>

#include "core/task.h"
#include "rules/rule.h"

namespace fusedoptim::python {

struct Options {
  alignas(16) unsigned char bytes[kMaxRuleBytes];
};
struct Constants {
  alignas(16) unsigned char bytes[kMaxRuleBytes];
};

class GroupReader;

struct RuleEntry {
  int index;  // in AllRules
  const char* name;
  const char* const* states;
  int max_states;
  unsigned non_negative;  // a bit for each state
  bool counts_steps;
  void (*read)(const GroupReader&, Options&);
  int (*variant)(const Options&, DType, bool first);
  unsigned (*states_of)(int variant);
  // False where they are too large for the arithmetic.
  bool (*make_constants)(const Options&, double step, DType, Constants&);
};

const RuleEntry& find_rule(const std::string& name);  // raises KeyError, naming the rules that there are

}  // namespace fusedoptim::python
