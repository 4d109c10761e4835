// Lion (Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023, program 1), as lion-pytorch has it.
#pragma once

#include "rules/rule.h"

namespace fusedoptim {

struct LionOptions {
  double lr, beta1, beta2, weight_decay, decay_lr;

  template <class Read>
  void read(Read&& read) {
    read("lr", lr, kOnDevice);
    read("betas", beta1, beta2);
    read("weight_decay", weight_decay);
    read("decay_lr", decay_lr);
  }
};

template <class T>
struct Lion {
  using Options = LionOptions;
  static constexpr const char* kName = "lion";
  static constexpr const char* kStates[] = {"exp_avg"};
  static constexpr unsigned kNonNegative = 0;
  static constexpr bool kCountsSteps = false;
  static constexpr int kVariants = 1;

  static int variant(const Options& /*o*/, bool /*first*/) { return 0; }
  static constexpr unsigned states_of(int /*variant*/) { return 0b1; }

  T keep, minus_lr, beta1, one_minus_beta1, beta2, one_minus_beta2;

  FUSEDOPTIM_INLINE Lion(const Options& o, double /*step*/)
      : keep(T(1 - o.lr * (o.weight_decay / o.decay_lr))),
        minus_lr(T(-o.lr)),
        beta1(T(o.beta1)),
        one_minus_beta1(T(1 - o.beta1)),
        beta2(T(o.beta2)),
        one_minus_beta2(T(1 - o.beta2)) {}

  template <int variant, class V>
  FUSEDOPTIM_INLINE void operator()(V& param, V grad, V* state) const {
    V& exp_avg = state[0];
    param = param * V(keep);
    param = fma(sign(fma(grad, V(one_minus_beta1), exp_avg * V(beta1))), V(minus_lr), param);
    exp_avg = fma(grad, V(one_minus_beta2), exp_avg * V(beta2));
  }
};

}  // namespace fusedoptim
