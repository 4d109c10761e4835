// Adagrad (Duchi, Hazan & Singer, "Adaptive subgradient methods for online learning and stochastic optimization",
// JMLR 12, 2011, figure 1 with diagonal matrices), with torch.optim's decay of the learning rate.
#pragma once

#include "rules/rule.h"

namespace fusedoptim {

struct AdagradOptions {
  double lr, lr_decay, weight_decay, eps;

  template <class Read>
  void read(Read&& read) {
    read("lr", lr, kOnDevice);
    read("lr_decay", lr_decay);
    read("weight_decay", weight_decay);
    read("eps", eps);
  }
};

template <class T>
struct Adagrad {
  using Options = AdagradOptions;
  static constexpr const char* kName = "adagrad";
  static constexpr const char* kStates[] = {"sum"};
  static constexpr unsigned kNonNegative = 0b1;
  static constexpr bool kCountsSteps = true;
  static constexpr int kVariants = 1;

  static int variant(const Options& /*o*/, bool /*first*/) { return 0; }
  static constexpr unsigned states_of(int /*variant*/) { return 0b1; }

  T minus_step_size, weight_decay, eps;

  FUSEDOPTIM_INLINE Adagrad(const Options& o, double step)
      : minus_step_size(T(-(o.lr / (1 + (step - 1) * o.lr_decay)))), weight_decay(T(o.weight_decay)), eps(T(o.eps)) {}

  template <int variant, class V>
  FUSEDOPTIM_INLINE void operator()(V& param, V grad, V* state) const {
    V& sum = state[0];
    if (weight_decay != 0) grad = fma(param, V(weight_decay), grad);
    sum = fma(grad, grad, sum);
    param = param + V(minus_step_size) * grad / (sqrt(sum) + V(eps));
  }
};

}  // namespace fusedoptim
