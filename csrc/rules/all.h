// Every rule there is; the order numbers them. A rule's header has the name of its struct, in small letters: the build
// reads the list, and compiles the kernels of each rule by themselves.
#pragma once

#include "rules/adam.h"
#include "rules/sgd.h"

namespace fusedoptim {

template <template <class> class... Rules>
struct RuleList {
  static constexpr int kCount = sizeof...(Rules);
};

using AllRules = RuleList<Sgd, Adam>;

}  // namespace fusedoptim
