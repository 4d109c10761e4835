// Every rule there is. The drivers instantiate this list; its order numbers the rules.
#pragma once

#include "rules/adam.h"
#include "rules/sgd.h"

namespace fusedoptim {

template <template <class> class... Rules>
struct RuleList {
  static constexpr int kCount = sizeof...(Rules);
};

using AllRules = RuleList<Sgd, Adam>;

constexpr int kMaxStates = 3;     // the most state tensors that a rule keeps per parameter
constexpr int kMaxVariants = 10;  // the most variants that a rule has

}  // namespace fusedoptim
