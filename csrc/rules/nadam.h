// NAdam (Dozat, "Incorporating Nesterov momentum into Adam", ICLR workshop 2016), with the momentum's schedule of its
// published code, and coupled or decoupled weight decay.
#pragma once

#include "rules/rule.h"

namespace fusedoptim {

struct NadamOptions {
  double lr, beta1, beta2, eps, weight_decay, momentum_decay;
  bool decoupled_weight_decay;

  template <class Read>
  void read(Read&& read) {
    read("lr", lr, kOnDevice);
    read("betas", beta1, beta2);
    read("eps", eps);
    read("weight_decay", weight_decay);
    read("momentum_decay", momentum_decay);
    read("decoupled_weight_decay", decoupled_weight_decay);
  }
};

template <class T>
struct Nadam {
  using Options = NadamOptions;
  static constexpr const char* kName = "nadam";
  static constexpr const char* kStates[] = {"exp_avg", "exp_avg_sq"};
  static constexpr const char* kNumbers[] = {"mu_product"};
  static constexpr unsigned kNonNegative = 0b10;
  static constexpr bool kCountsSteps = true;
  static constexpr int kVariants = 1;

  static int variant(const Options& /*o*/, bool /*first*/) { return 0; }
  static constexpr unsigned states_of(int /*variant*/) { return 0b11; }

  FUSEDOPTIM_INLINE static double mu(const Options& o, double step) {
    return o.beta1 * (1 - 0.5 * power(0.96, step * o.momentum_decay));
  }
  FUSEDOPTIM_INLINE static void advance(const Options& o, Numbers& numbers) {
    numbers.after[0] = numbers.before[0] * mu(o, numbers.step);
  }

  Lerp<T> towards_grad;
  T beta2, one_minus_beta2, eps, weight_decay, keep, of_grad, of_exp_avg;
  Divisor<T> root_correction2;

  FUSEDOPTIM_INLINE Nadam(const Options& o, const Numbers& numbers)
      : Nadam(o, numbers.step, mu(o, numbers.step + 1), numbers.after[0]) {}

  template <int variant, class V>
  FUSEDOPTIM_INLINE void operator()(V& param, V grad, V* state) const {
    V& exp_avg = state[0];
    V& exp_avg_sq = state[1];
    if (weight_decay != 0) grad = fma(param, V(weight_decay), grad);
    param = param * V(keep);
    exp_avg = towards_grad(exp_avg, grad);
    exp_avg_sq = fma(V(one_minus_beta2) * grad, grad, exp_avg_sq * V(beta2));
    const V denominator = root_correction2.divide(sqrt(exp_avg_sq)) + V(eps);
    param = param + fma(exp_avg, V(of_exp_avg), V(of_grad) * grad) / denominator;
  }

 private:
  FUSEDOPTIM_INLINE Nadam(const Options& o, double step, double next_mu, double mu_product)
      : towards_grad(1 - o.beta1),
        beta2(T(o.beta2)),
        one_minus_beta2(T(1 - o.beta2)),
        eps(T(o.eps)),
        weight_decay(T(o.decoupled_weight_decay ? 0 : o.weight_decay)),
        keep(T(o.decoupled_weight_decay ? 1 - o.lr * o.weight_decay : 1)),
        of_grad(T(-(o.lr * (1 - mu(o, step)) / (1 - mu_product)))),
        of_exp_avg(T(-(o.lr * next_mu / (1 - mu_product * next_mu)))),
        root_correction2(sqrt(1 - power(o.beta2, step))) {}
};

}  // namespace fusedoptim
