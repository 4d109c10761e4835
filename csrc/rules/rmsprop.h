// RMSprop (Hinton, "Neural networks for machine learning", lecture 6e, 2012), with momentum, and centered (Graves,
// "Generating sequences with recurrent neural networks", 2013, equations 38 to 45) as torch.optim defines it.
#pragma once

#include "rules/rule.h"

namespace fusedoptim {

struct RmspropOptions {
  double lr, alpha, eps, weight_decay, momentum;
  bool centered;

  template <class Read>
  void read(Read&& read) {
    read("lr", lr, kOnDevice);
    read("alpha", alpha);
    read("eps", eps);
    read("weight_decay", weight_decay);
    read("momentum", momentum);
    read("centered", centered);
  }
};

template <class T>
struct Rmsprop {
  using Options = RmspropOptions;
  static constexpr const char* kName = "rmsprop";
  static constexpr const char* kStates[] = {"square_avg", "momentum_buffer", "grad_avg"};
  static constexpr unsigned kNonNegative = 0b1;
  static constexpr bool kCountsSteps = true;

  // A variant is momentum (1) and centered (2).
  static constexpr int kVariants = 4;
  static int variant(const Options& o, bool /*first*/) { return (o.momentum > 0 ? 1 : 0) + (o.centered ? 2 : 0); }
  static constexpr unsigned states_of(int variant) { return unsigned(1 + 2 * variant); }

  Lerp<T> towards_grad;
  T alpha, one_minus_alpha, eps, weight_decay, momentum, minus_lr;

  FUSEDOPTIM_INLINE Rmsprop(const Options& o, double /*step*/)
      : towards_grad(1 - o.alpha),
        alpha(T(o.alpha)),
        one_minus_alpha(T(1 - o.alpha)),
        eps(T(o.eps)),
        weight_decay(T(o.weight_decay)),
        momentum(T(o.momentum)),
        minus_lr(T(-o.lr)) {}

  template <int variant, class V>
  FUSEDOPTIM_INLINE void operator()(V& param, V grad, V* state) const {
    constexpr bool has_momentum = variant % 2 == 1, centered = variant >= 2;
    V& square_avg = state[0];
    if (weight_decay != 0) grad = fma(param, V(weight_decay), grad);
    square_avg = fma(V(one_minus_alpha) * grad, grad, square_avg * V(alpha));
    V variance = square_avg;
    if constexpr (centered) {
      V& grad_avg = state[1 + has_momentum];
      grad_avg = towards_grad(grad_avg, grad);
      variance = max(V(0), fma(V(0) - grad_avg, grad_avg, square_avg));  // rounding may leave it below 0
    }
    const V root = sqrt(variance) + V(eps);
    if constexpr (has_momentum) {
      V& momentum_buffer = state[1];
      momentum_buffer = momentum_buffer * V(momentum) + grad / root;
      param = fma(momentum_buffer, V(minus_lr), param);
    } else {
      param = param + V(minus_lr) * grad / root;
    }
  }
};

}  // namespace fusedoptim
