// Adamax (Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 2), with epsilon added to the
// gradient's magnitude as torch.optim does.
#pragma once

#include "rules/rule.h"

namespace fusedoptim {

struct AdamaxOptions {
  double lr, beta1, beta2, eps, weight_decay;

  template <class Read>
  void read(Read&& read) {
    read("lr", lr, kOnDevice);
    read("betas", beta1, beta2);
    read("eps", eps);
    read("weight_decay", weight_decay);
  }
};

template <class T>
struct Adamax {
  using Options = AdamaxOptions;
  static constexpr const char* kName = "adamax";
  static constexpr const char* kStates[] = {"exp_avg", "exp_inf"};
  static constexpr unsigned kNonNegative = 0b10;
  static constexpr bool kCountsSteps = true;
  static constexpr int kVariants = 1;

  static int variant(const Options& /*o*/, bool /*first*/) { return 0; }
  static constexpr unsigned states_of(int /*variant*/) { return 0b11; }

  Lerp<T> towards_grad;
  T beta2, eps, weight_decay, minus_step_size;

  FUSEDOPTIM_INLINE Adamax(const Options& o, double step)
      : towards_grad(1 - o.beta1),
        beta2(T(o.beta2)),
        eps(T(o.eps)),
        weight_decay(T(o.weight_decay)),
        minus_step_size(T(-(o.lr / (1 - power(o.beta1, step))))) {}

  template <int variant, class V>
  FUSEDOPTIM_INLINE void operator()(V& param, V grad, V* state) const {
    V& exp_avg = state[0];
    V& exp_inf = state[1];
    if (weight_decay != 0) grad = fma(param, V(weight_decay), grad);
    exp_avg = towards_grad(exp_avg, grad);
    exp_inf = max(exp_inf * V(beta2), abs(grad) + V(eps));
    param = param + V(minus_step_size) * exp_avg / exp_inf;
  }
};

}  // namespace fusedoptim
