// Stochastic gradient descent with momentum, as torch.optim.SGD defines it: the buffer starts as the first gradient,
// without dampening, and the learning rate multiplies the buffer. Sutskever et al., "On the importance of
// initialization and momentum in deep learning", ICML 2013.
#pragma once

#include "rules/rule.h"

namespace fusedoptim {

struct SgdOptions {
  double lr, momentum, dampening, weight_decay;
  bool nesterov;

  template <class Read>
  void read(Read&& read) {
    read("lr", lr, kOnDevice);
    read("momentum", momentum);
    read("dampening", dampening);
    read("weight_decay", weight_decay);
    read("nesterov", nesterov);
  }
};

template <class T>
struct Sgd {
  using Options = SgdOptions;
  static constexpr const char* kName = "sgd";
  static constexpr const char* kStates[] = {"momentum_buffer"};
  static constexpr unsigned kNonNegative = 0;
  static constexpr bool kCountsSteps = false;

  // A variant is a Velocity, plus one with weight decay: none of it is decided per element.
  enum Velocity { kPlain, kFirst, kFirstNesterov, kNext, kNextNesterov, kVelocities };
  static constexpr int kVariants = 2 * kVelocities;

  static int variant(const Options& o, bool first) {
    const int velocity = o.momentum == 0 ? kPlain : (first ? kFirst : kNext) + (o.nesterov ? 1 : 0);
    return velocity + (o.weight_decay != 0 ? kVelocities : 0);
  }
  static constexpr unsigned states_of(int variant) { return variant % kVelocities == kPlain ? 0 : 1; }

  T minus_lr, momentum, one_minus_dampening, weight_decay;

  FUSEDOPTIM_INLINE Sgd(const Options& o, double /*step*/)
      : minus_lr(T(-o.lr)),
        momentum(T(o.momentum)),
        one_minus_dampening(T(o.momentum == 0 ? 0 : 1 - o.dampening)),
        weight_decay(T(o.weight_decay)) {}

  template <int variant, class V>
  FUSEDOPTIM_INLINE void operator()(V& param, V grad, V* state) const {
    constexpr int velocity = variant % kVelocities;
    if constexpr (variant >= kVelocities) grad = fma(param, V(weight_decay), grad);
    if constexpr (velocity != kPlain) {
      V& buffer = state[0];
      constexpr bool first = velocity == kFirst || velocity == kFirstNesterov;
      constexpr bool nesterov = velocity == kFirstNesterov || velocity == kNextNesterov;
      buffer = first ? grad : fma(V(one_minus_dampening), grad, buffer * V(momentum));
      grad = nesterov ? fma(buffer, V(momentum), grad) : buffer;
    }
    param = fma(grad, V(minus_lr), param);
  }
};

}  // namespace fusedoptim
