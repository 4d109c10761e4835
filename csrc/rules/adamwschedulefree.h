// Schedule-free AdamW; see schedule_free.h.
#pragma once

#include "rules/schedule_free.h"

namespace fusedoptim {

struct AdamWScheduleFreeOptions : ScheduleFreeOptions {
  double beta1, beta2, eps;

  template <class Read>
  void read(Read&& read) {
    read_shared(read);
    read("betas", beta1, beta2);
    read("eps", eps);
  }
};

template <class T>
struct AdamWScheduleFree : ScheduleFreeGroup {
  using Options = AdamWScheduleFreeOptions;
  static constexpr const char* kName = "adamw_schedule_free";
  static constexpr const char* kStates[] = {"z", "exp_avg_sq"};
  static constexpr unsigned kNonNegative = 0b10;
  static constexpr bool kCountsSteps = false;
  static constexpr int kVariants = 1;

  static int variant(const Options& /*o*/, bool /*first*/) { return 0; }
  static constexpr unsigned states_of(int /*variant*/) { return 0b11; }

  ScheduleFreeMove<T> move;
  T beta2, one_minus_beta2, eps, weight_decay;
  Divisor<T> root_correction2;

  FUSEDOPTIM_INLINE AdamWScheduleFree(const Options& o, double step)
      : move(ScheduleFreeStep(o), o.beta1),
        beta2(T(o.beta2)),
        one_minus_beta2(T(1 - o.beta2)),
        eps(T(o.eps)),
        weight_decay(T(o.weight_decay)),
        root_correction2(sqrt(1 - power(o.beta2, step))) {}

  template <int variant, class V>
  FUSEDOPTIM_INLINE void operator()(V& param, V grad, V* state) const {
    V& exp_avg_sq = state[1];
    exp_avg_sq = fma(V(one_minus_beta2) * grad, grad, exp_avg_sq * V(beta2));
    V direction = grad / (root_correction2.divide(sqrt(exp_avg_sq)) + V(eps));
    if (weight_decay != 0) direction = fma(param, V(weight_decay), direction);
    move(param, state[0], direction);
  }
};

}  // namespace fusedoptim
