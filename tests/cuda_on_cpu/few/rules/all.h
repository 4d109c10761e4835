// In place of csrc/rules/all.h where mistakes are planted: the first rules of that list, whose variants are all that
// the drivers can meet. Each is compiled anew for every mistake.
#pragma once

#include "rules/adam.h"
#include "rules/sgd.h"

namespace fusedoptim {

template <template <class> class... Rules>
struct RuleList {};

using AllRules = RuleList<Sgd, Adam>;

}  // namespace fusedoptim
