// Adadelta (Zeiler, "ADADELTA: an adaptive learning rate method", 2012, algorithm 1), with a learning rate and weight
// decay as torch.optim has them.
#pragma once

#include "rules/rule.h"

namespace fusedoptim {

struct AdadeltaOptions {
  double lr, rho, eps, weight_decay;

  template <class Read>
  void read(Read&& read) {
    read("lr", lr, kOnDevice);
    read("rho", rho);
    read("eps", eps);
    read("weight_decay", weight_decay);
  }
};

template <class T>
struct Adadelta {
  using Options = AdadeltaOptions;
  static constexpr const char* kName = "adadelta";
  static constexpr const char* kStates[] = {"square_avg", "acc_delta"};
  static constexpr unsigned kNonNegative = 0b11;
  static constexpr bool kCountsSteps = true;
  static constexpr int kVariants = 1;

  static int variant(const Options& /*o*/, bool /*first*/) { return 0; }
  static constexpr unsigned states_of(int /*variant*/) { return 0b11; }

  T minus_lr, rho, one_minus_rho, eps, weight_decay;

  FUSEDOPTIM_INLINE Adadelta(const Options& o, double /*step*/)
      : minus_lr(T(-o.lr)),
        rho(T(o.rho)),
        one_minus_rho(T(1 - o.rho)),
        eps(T(o.eps)),
        weight_decay(T(o.weight_decay)) {}

  template <int variant, class V>
  FUSEDOPTIM_INLINE void operator()(V& param, V grad, V* state) const {
    V& square_avg = state[0];
    V& acc_delta = state[1];
    if (weight_decay != 0) grad = fma(param, V(weight_decay), grad);
    square_avg = fma(V(one_minus_rho) * grad, grad, square_avg * V(rho));
    const V delta = sqrt(acc_delta + V(eps)) / sqrt(square_avg + V(eps)) * grad;
    acc_delta = fma(V(one_minus_rho) * delta, delta, acc_delta * V(rho));
    param = fma(delta, V(minus_lr), param);
  }
};

}  // namespace fusedoptim
