// Adan (Xie et al., "Adan: adaptive Nesterov momentum algorithm for faster optimizing deep models", TPAMI 2024,
// algorithm 1), with the bias corrections and the two forms of weight decay of its authors' code.
#pragma once

#include "rules/rule.h"

namespace fusedoptim {

struct AdanOptions {
  double lr, beta1, beta2, beta3, eps, weight_decay;
  bool no_prox;

  template <class Read>
  void read(Read&& read) {
    read("lr", lr, kOnDevice);
    read("betas", beta1, beta2, beta3);
    read("eps", eps);
    read("weight_decay", weight_decay);
    read("no_prox", no_prox);
  }
};

template <class T>
struct Adan {
  using Options = AdanOptions;
  static constexpr const char* kName = "adan";
  static constexpr const char* kStates[] = {"exp_avg", "exp_avg_sq", "exp_avg_diff", "neg_pre_grad"};
  static constexpr unsigned kNonNegative = 0b10;
  static constexpr bool kCountsSteps = true;
  static constexpr int kVariants = 1;

  static int variant(const Options& /*o*/, bool /*first*/) { return 0; }
  static constexpr unsigned states_of(int /*variant*/) { return 0b1111; }

  Lerp<T> towards_grad, towards_diff;
  T beta2, beta3, one_minus_beta3, eps, keep, shrink, of_grad, of_diff, has_last;
  Divisor<T> root_correction3;

  FUSEDOPTIM_INLINE Adan(const Options& o, double step)
      : towards_grad(1 - o.beta1),
        towards_diff(1 - o.beta2),
        beta2(T(o.beta2)),
        beta3(T(o.beta3)),
        one_minus_beta3(T(1 - o.beta3)),
        eps(T(o.eps)),
        keep(T(o.no_prox ? 1 - o.lr * o.weight_decay : 1)),
        shrink(T(o.no_prox ? 1 : 1 + o.lr * o.weight_decay)),
        of_grad(T(-(o.lr / (1 - power(o.beta1, step))))),
        of_diff(T(-(o.lr * o.beta2 / (1 - power(o.beta2, step))))),
        has_last(T(step == 1 ? 0 : 1)),
        root_correction3(sqrt(1 - power(o.beta3, step))) {}

  template <int variant, class V>
  FUSEDOPTIM_INLINE void operator()(V& param, V grad, V* state) const {
    V& exp_avg = state[0];
    V& exp_avg_sq = state[1];
    V& exp_avg_diff = state[2];
    V& neg_pre_grad = state[3];
    const V diff = has_last == 0 ? V(0) : neg_pre_grad + grad;
    exp_avg = towards_grad(exp_avg, grad);
    exp_avg_diff = towards_diff(exp_avg_diff, diff);
    const V ahead = fma(diff, V(beta2), grad);
    exp_avg_sq = fma(V(one_minus_beta3) * ahead, ahead, exp_avg_sq * V(beta3));
    const V denominator = root_correction3.divide(sqrt(exp_avg_sq)) + V(eps);
    param = param * V(keep) + fma(exp_avg_diff, V(of_diff), exp_avg * V(of_grad)) / denominator;
    if (shrink != 1) param = param / V(shrink);
    neg_pre_grad = V(0) - grad;
  }
};

}  // namespace fusedoptim
