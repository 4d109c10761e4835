// Adam with bias correction (Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1), with
// coupled or decoupled weight decay (Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019) and
// AMSGrad (Reddi et al., "On the convergence of Adam and beyond", ICLR 2018).
#pragma once

#include "rules/rule.h"

namespace fusedoptim {

struct AdamOptions {
  double lr, beta1, beta2, eps, weight_decay;
  bool amsgrad, decoupled_weight_decay;

  template <class Read>
  void read(Read&& read) {
    read("lr", lr, kOnDevice);
    read("betas", beta1, beta2, kOnDevice);
    read("eps", eps);
    read("weight_decay", weight_decay);
    read("amsgrad", amsgrad);
    read("decoupled_weight_decay", decoupled_weight_decay);
  }
};

template <class T>
struct Adam {
  using Options = AdamOptions;
  static constexpr const char* kName = "adam";
  static constexpr const char* kStates[] = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
  static constexpr unsigned kNonNegative = 0b110;
  static constexpr bool kCountsSteps = true;

  // A variant is weight decay (none, coupled, decoupled) x amsgrad.
  enum Decay { kNone, kCoupled, kDecoupled };
  static constexpr int kVariants = 6;

  static int variant(const Options& o, bool /*first*/) {
    const int decay = o.weight_decay == 0 ? kNone : o.decoupled_weight_decay ? kDecoupled : kCoupled;
    return decay * 2 + (o.amsgrad ? 1 : 0);
  }
  static constexpr unsigned states_of(int variant) { return variant % 2 == 1 ? 0b111 : 0b11; }

  Lerp<T> towards_grad;
  T beta2, one_minus_beta2, eps, weight_decay, keep, minus_step_size;
  Divisor<T> root_correction2;

  FUSEDOPTIM_INLINE Adam(const Options& o, double step)
      : towards_grad(1 - o.beta1),
        beta2(T(o.beta2)),
        one_minus_beta2(T(1 - o.beta2)),
        eps(T(o.eps)),
        weight_decay(T(o.decoupled_weight_decay ? 0 : o.weight_decay)),
        keep(T(1 - o.lr * o.weight_decay)),
        minus_step_size(T(-(o.lr / (1 - power(o.beta1, step))))),
        root_correction2(sqrt(1 - power(o.beta2, step))) {}

  template <int variant, class V>
  FUSEDOPTIM_INLINE void operator()(V& param, V grad, V* state) const {
    const V root = begin<variant>(param, grad, state);
    finish(param, state[0], root);
  }

  // The same in two halves, so that a loop can begin with the next elements while it waits for the root of these.
  template <int variant, class V>
  FUSEDOPTIM_INLINE V begin(V& param, V grad, V* state) const {
    constexpr int decay = variant / 2;
    constexpr bool amsgrad = variant % 2 == 1;
    V& exp_avg = state[0];
    V& exp_avg_sq = state[1];

    if constexpr (decay == kCoupled) grad = fma(param, V(weight_decay), grad);
    if constexpr (decay == kDecoupled) param = param * V(keep);

    exp_avg = towards_grad(exp_avg, grad);
    exp_avg_sq = fma(V(one_minus_beta2) * grad, grad, exp_avg_sq * V(beta2));

    V second_moment = exp_avg_sq;
    if constexpr (amsgrad) second_moment = state[2] = max(state[2], exp_avg_sq);
    return sqrt(second_moment);
  }
  template <class V>
  FUSEDOPTIM_INLINE void finish(V& param, V exp_avg, V root) const {
    const V denominator = root_correction2.divide(root) + V(eps);
    param = param + V(minus_step_size) * exp_avg / denominator;
  }
};

}  // namespace fusedoptim
