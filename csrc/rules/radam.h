// RAdam (Liu et al., "On the variance of the adaptive learning rate and beyond", ICLR 2020, algorithm 2), with coupled
// or decoupled weight decay, and with epsilon beside the root before the bias is corrected, as torch.optim has it.
#pragma once

#include "rules/rule.h"

namespace fusedoptim {

struct RadamOptions {
  double lr, beta1, beta2, eps, weight_decay;
  bool decoupled_weight_decay;

  template <class Read>
  void read(Read&& read) {
    read("lr", lr, kOnDevice);
    read("betas", beta1, beta2);
    read("eps", eps);
    read("weight_decay", weight_decay);
    read("decoupled_weight_decay", decoupled_weight_decay);
  }
};

template <class T>
struct Radam {
  using Options = RadamOptions;
  static constexpr const char* kName = "radam";
  static constexpr const char* kStates[] = {"exp_avg", "exp_avg_sq"};
  static constexpr unsigned kNonNegative = 0b10;
  static constexpr bool kCountsSteps = true;
  static constexpr int kVariants = 1;

  static int variant(const Options& /*o*/, bool /*first*/) { return 0; }
  static constexpr unsigned states_of(int /*variant*/) { return 0b11; }

  Lerp<T> towards_grad;
  T beta2, one_minus_beta2, eps, weight_decay, keep, rectified, minus_step_size;

  FUSEDOPTIM_INLINE Radam(const Options& o, double step) : Radam(o, StepSize(o, step)) {}

  template <int variant, class V>
  FUSEDOPTIM_INLINE void operator()(V& param, V grad, V* state) const {
    V& exp_avg = state[0];
    V& exp_avg_sq = state[1];
    if (weight_decay != 0) grad = fma(param, V(weight_decay), grad);
    param = param * V(keep);
    exp_avg = towards_grad(exp_avg, grad);
    exp_avg_sq = fma(V(one_minus_beta2) * grad, grad, exp_avg_sq * V(beta2));
    if (rectified != 0) {
      param = param + V(minus_step_size) * exp_avg / (sqrt(exp_avg_sq) + V(eps));
    } else {
      param = fma(exp_avg, V(minus_step_size), param);
    }
  }

 private:
  struct StepSize {
    double size;
    bool is_rectified;

    FUSEDOPTIM_INLINE StepSize(const Options& o, double step) {
      const double beta2_power = power(o.beta2, step), correction2 = 1 - beta2_power;
      const double longest = 2 / (1 - o.beta2) - 1;  // of the moving averages that approximate the exponential one
      const double length = longest - 2 * step * beta2_power / correction2;
      is_rectified = length > 5;
      size = o.lr / (1 - power(o.beta1, step));
      if (!is_rectified) return;
      const double rectification = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length);
      size = size * sqrt(rectification) * sqrt(correction2);
    }
  };

  FUSEDOPTIM_INLINE Radam(const Options& o, const StepSize& step_size)
      : towards_grad(1 - o.beta1),
        beta2(T(o.beta2)),
        one_minus_beta2(T(1 - o.beta2)),
        eps(T(o.eps)),
        weight_decay(T(o.decoupled_weight_decay ? 0 : o.weight_decay)),
        keep(T(o.decoupled_weight_decay ? 1 - o.lr * o.weight_decay : 1)),
        rectified(T(step_size.is_rectified ? 1 : 0)),
        minus_step_size(T(-step_size.size)) {}
};

}  // namespace fusedoptim
