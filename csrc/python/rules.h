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
  const char* const* numbers;
  int number_count;
  void (*read)(const GroupReader&, Options&);
  int (*variant)(const Options&, DType, bool first);
  unsigned (*states_of)(int variant);
  const char* const* group_numbers;
  int group_number_count;
  void (*advance_group)(const Options&, double* numbers);
  double (*step_of_group)(const Options&);  // 1 of a rule that has no such numbers
  void (*advance)(const Options&, Numbers&);
  // False where they are too large for the arithmetic.
  bool (*make_constants)(const Options&, const Numbers&, DType, Constants&);
};

const RuleEntry& find_rule(const std::string& name);  // raises KeyError, naming the rules that there are

}  // namespace fusedoptim::python
