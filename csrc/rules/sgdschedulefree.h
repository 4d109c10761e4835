// Schedule-free SGD; see schedule_free.h.
#pragma once

#include "rules/schedule_free.h"

namespace fusedoptim {

struct SGDScheduleFreeOptions : ScheduleFreeOptions {
  double momentum;

  template <class Read>
  void read(Read&& read) {
    read_shared(read);
    read("momentum", momentum);
  }
};

template <class T>
struct SGDScheduleFree : ScheduleFreeGroup {
  using Options = SGDScheduleFreeOptions;
  static constexpr const char* kName = "sgd_schedule_free";
  static constexpr const char* kStates[] = {"z"};
  static constexpr unsigned kNonNegative = 0;
  static constexpr bool kCountsSteps = false;
  static constexpr int kVariants = 1;

  static int variant(const Options& /*o*/, bool /*first*/) { return 0; }
  static constexpr unsigned states_of(int /*variant*/) { return 0b1; }

  ScheduleFreeMove<T> move;
  T weight_decay;

  FUSEDOPTIM_INLINE SGDScheduleFree(const Options& o, double /*step*/)
      : move(ScheduleFreeStep(o), o.momentum), weight_decay(T(o.weight_decay)) {}

  template <int variant, class V>
  FUSEDOPTIM_INLINE void operator()(V& param, V grad, V* state) const {
    if (weight_decay != 0) grad = fma(param, V(weight_decay), grad);
    move(param, state[0], grad);
  }
};

}  // namespace fusedoptim
