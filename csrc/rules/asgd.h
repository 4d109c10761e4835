// Averaged stochastic gradient descent (Polyak & Juditsky, "Acceleration of stochastic approximation by averaging",
// SIAM J. Control and Optimization 30, 1992), with the step size of Bottou's code, as torch.optim has it.
#pragma once

#include "rules/rule.h"

namespace fusedoptim {

struct AsgdOptions {
  double lr, lambd, alpha, t0, weight_decay;

  template <class Read>
  void read(Read&& read) {
    read("lr", lr, kOnDevice);
    read("lambd", lambd);
    read("alpha", alpha);
    read("t0", t0);
    read("weight_decay", weight_decay);
  }
};

template <class T>
struct Asgd {
  using Options = AsgdOptions;
  static constexpr const char* kName = "asgd";
  static constexpr const char* kStates[] = {"ax"};
  static constexpr const char* kNumbers[] = {"eta", "mu"};
  static constexpr unsigned kNonNegative = 0;
  static constexpr bool kCountsSteps = true;
  static constexpr int kVariants = 1;

  static int variant(const Options& /*o*/, bool /*first*/) { return 0; }
  static constexpr unsigned states_of(int /*variant*/) { return 0b1; }

  // This step takes the size and the weight that the last one left.
  FUSEDOPTIM_INLINE static void advance(const Options& o, Numbers& numbers) {
    const double slowdown = power(1 + o.lambd * o.lr * numbers.step, o.alpha < 0 ? -o.alpha : o.alpha);
    numbers.after[0] = o.alpha < 0 ? o.lr * slowdown : o.lr / slowdown;
    const double averaged = numbers.step - o.t0;  // steps
    numbers.after[1] = 1 / (averaged < 1 ? 1 : averaged);
  }

  T weight_decay, keep, minus_eta, mu;

  FUSEDOPTIM_INLINE Asgd(const Options& o, const Numbers& numbers)
      : weight_decay(T(o.weight_decay)),
        keep(T(1 - o.lambd * numbers.before[0])),
        minus_eta(T(-numbers.before[0])),
        mu(T(numbers.before[1])) {}

  template <int variant, class V>
  FUSEDOPTIM_INLINE void operator()(V& param, V grad, V* state) const {
    V& ax = state[0];
    if (weight_decay != 0) grad = fma(param, V(weight_decay), grad);
    param = fma(grad, V(minus_eta), param * V(keep));
    ax = mu == 1 ? param : ax + (param - ax) * V(mu);
  }
};

}  // namespace fusedoptim
