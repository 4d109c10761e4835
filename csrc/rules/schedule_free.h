// What schedule-free rules share (Defazio et al., "The road less scheduled", NeurIPS 2024): the weight of a step in the
// average of all iterates, with a warmup of the learning rate, as the authors' package has them. The parameter is y,
// the point at which gradients are taken; z, the iterate of the base method, is kept; x, their average, follows from
// both.
#pragma once

#include "rules/rule.h"

namespace fusedoptim {

// `k`, `lr_max` and `weight_sum` are written by the step.
struct ScheduleFreeOptions {
  double lr, weight_decay, warmup_steps, r, weight_lr_power, k, lr_max, weight_sum;

  template <class Read>
  void read_shared(Read&& read) {
    read("lr", lr);
    read("weight_decay", weight_decay);
    read("warmup_steps", warmup_steps);
    read("r", r);
    read("weight_lr_power", weight_lr_power);
    read("k", k);
    read("lr_max", lr_max);
    read("weight_sum", weight_sum);
  }
};

struct ScheduleFreeStep {
  double lr, lr_max, weight_sum, share;  // share: of this iterate in the average

  FUSEDOPTIM_INLINE explicit ScheduleFreeStep(const ScheduleFreeOptions& o)
      : lr(o.lr * (o.k < o.warmup_steps ? (o.k + 1) / o.warmup_steps : 1)), lr_max(lr < o.lr_max ? o.lr_max : lr) {
    const double weight = signed_power(o.k + 1, o.r) * signed_power(lr_max, o.weight_lr_power);
    weight_sum = o.weight_sum + weight;
    share = weight_sum == 0 ? 0 : weight / weight_sum;
  }

 private:
  FUSEDOPTIM_INLINE static double signed_power(double base, double exponent) {
    return exponent < 0 ? 1 / power(base, -exponent) : power(base, exponent);
  }
};

// What a step writes to the group: these, and one more step.
struct ScheduleFreeGroup {
  static constexpr const char* kGroupNumbers[] = {"k", "lr_max", "weight_sum", "scheduled_lr"};
  static void advance_group(const ScheduleFreeOptions& o, double* numbers) {
    const ScheduleFreeStep step(o);
    numbers[0] = o.k + 1;
    numbers[1] = step.lr_max;
    numbers[2] = step.weight_sum;
    numbers[3] = step.lr;
  }
  static double step_of(const ScheduleFreeOptions& o) { return o.k + 1; }
};

// Moves y and z by a gradient.
template <class T>
struct ScheduleFreeMove {
  Lerp<T> towards_z;
  T minus_lr, of_grad;

  FUSEDOPTIM_INLINE ScheduleFreeMove(const ScheduleFreeStep& step, double beta)
      : towards_z(step.share), minus_lr(T(-step.lr)), of_grad(T(step.lr * (beta * (1 - step.share) - 1))) {}

  template <class V>
  FUSEDOPTIM_INLINE void operator()(V& y, V& z, V grad) const {
    y = fma(grad, V(of_grad), towards_z(y, z));
    z = fma(grad, V(minus_lr), z);
  }
};

}  // namespace fusedoptim
