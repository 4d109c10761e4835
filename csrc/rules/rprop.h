// Rprop (Riedmiller & Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm", ICNN
// 1993), without going back where the sign changes, as torch.optim has it. Signs are compared, where torch's multiplies
// both gradients: their product may underflow.
#pragma once

#include "rules/rule.h"

namespace fusedoptim {

struct RpropOptions {
  double eta_minus, eta_plus, least, most;

  template <class Read>
  void read(Read&& read) {
    read("etas", eta_minus, eta_plus, kAnyPair);
    read("step_sizes", least, most, kAnyPair);
  }
};

template <class T>
struct Rprop {
  using Options = RpropOptions;
  static constexpr const char* kName = "rprop";
  static constexpr const char* kStates[] = {"prev", "step_size"};
  static constexpr unsigned kNonNegative = 0b10;
  static constexpr bool kCountsSteps = true;
  static constexpr int kVariants = 1;

  static int variant(const Options& /*o*/, bool /*first*/) { return 0; }
  static constexpr unsigned states_of(int /*variant*/) { return 0b11; }

  T eta_minus, eta_plus, least, most;

  FUSEDOPTIM_INLINE Rprop(const Options& o, double /*step*/)
      : eta_minus(T(o.eta_minus)), eta_plus(T(o.eta_plus)), least(T(o.least)), most(T(o.most)) {}

  template <int variant, class V>
  FUSEDOPTIM_INLINE void operator()(V& param, V grad, V* state) const {
    V& prev = state[0];
    V& step_size = state[1];
    const V same = sign(grad) * sign(prev), opposite = V(0) - same;
    const V factor = if_positive(same, V(eta_plus), if_positive(opposite, V(eta_minus), V(1)));
    step_size = min(max(step_size * factor, V(least)), V(most));
    grad = if_positive(opposite, V(0), grad);
    param = fma(sign(grad), V(0) - step_size, param);
    prev = grad;
  }
};

}  // namespace fusedoptim
