// The exponential moving average of a parameter, which a driver keeps beside whatever the rule does.
#pragma once

#include "rules/rule.h"

namespace fusedoptim {

// average + weight (param - average), computed from the nearer end.
template <class T>
struct Average {
  T from_param, change_weight;

  FUSEDOPTIM_INLINE explicit Average(double weight)
      : from_param(T(weight) < T(0.5) ? T(0) : T(1)), change_weight(T(weight) - from_param) {}

  template <class V>
  FUSEDOPTIM_INLINE V operator()(V average, V param) const {
    return fma(V(change_weight), param - average, if_nonzero(V(from_param), param, average));
  }
};

}  // namespace fusedoptim
