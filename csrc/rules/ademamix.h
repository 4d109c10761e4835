// AdEMAMix (Pagliardini, Ablin & Grangier, "The AdEMAMix optimizer: better, faster, older", ICLR 2025), with decoupled
// weight decay, and with the schedules of alpha and beta3 of the paper's section 3.
#pragma once

#include "rules/rule.h"

namespace fusedoptim {

struct AdEMAMixOptions {
  double lr, beta1, beta2, beta3, alpha, beta3_warmup, alpha_warmup, eps, weight_decay;

  template <class Read>
  void read(Read&& read) {
    read("lr", lr, kOnDevice);
    read("betas", beta1, beta2, beta3);
    read("alpha", alpha);
    read("beta3_warmup", beta3_warmup);
    read("alpha_warmup", alpha_warmup);
    read("eps", eps);
    read("weight_decay", weight_decay);
  }
};

template <class T>
struct AdEMAMix {
  using Options = AdEMAMixOptions;
  static constexpr const char* kName = "ademamix";
  static constexpr const char* kStates[] = {"exp_avg_fast", "exp_avg_slow", "exp_avg_sq"};
  static constexpr unsigned kNonNegative = 0b100;
  static constexpr bool kCountsSteps = true;

  // With beta1 = 0 the fast average is the gradient itself, and takes no memory.
  static constexpr int kVariants = 2;
  static int variant(const Options& o, bool /*first*/) { return o.beta1 == 0 ? 1 : 0; }
  static constexpr unsigned states_of(int variant) { return variant == 1 ? 0b110 : 0b111; }

  Lerp<T> fast_towards_grad, slow_towards_grad;
  T beta2, one_minus_beta2, eps, keep, of_fast, of_slow;
  Divisor<T> root_correction2;

  FUSEDOPTIM_INLINE AdEMAMix(const Options& o, double step)
      : fast_towards_grad(1 - o.beta1),
        slow_towards_grad(1 - beta3_at(o, step)),
        beta2(T(o.beta2)),
        one_minus_beta2(T(1 - o.beta2)),
        eps(T(o.eps)),
        keep(T(1 - o.lr * o.weight_decay)),
        of_fast(T(-(o.lr / (1 - power(o.beta1, step))))),
        of_slow(T(-(o.lr * (o.alpha * progress(step, o.alpha_warmup))))),
        root_correction2(sqrt(1 - power(o.beta2, step))) {}

  template <int variant, class V>
  FUSEDOPTIM_INLINE void operator()(V& param, V grad, V* state) const {
    constexpr int has_fast = variant == 0;
    V& exp_avg_slow = state[has_fast];
    V& exp_avg_sq = state[has_fast + 1];
    V fast = grad;
    if constexpr (has_fast) fast = state[0] = fast_towards_grad(state[0], grad);
    exp_avg_slow = slow_towards_grad(exp_avg_slow, grad);
    exp_avg_sq = fma(V(one_minus_beta2) * grad, grad, exp_avg_sq * V(beta2));
    const V denominator = root_correction2.divide(sqrt(exp_avg_sq)) + V(eps);
    param = param * V(keep) + fma(exp_avg_slow, V(of_slow), fast * V(of_fast)) / denominator;
  }

 private:
  // Of a warmup, from 0 to 1.
  FUSEDOPTIM_INLINE static double progress(double step, double warmup) { return step < warmup ? step / warmup : 1; }

  // beta3 grows from beta1 so that the half-life of the average grows linearly.
  FUSEDOPTIM_INLINE static double beta3_at(const Options& o, double step) {
    const double done = progress(step, o.beta3_warmup);
    if (done == 1) return o.beta3;
    const double half_life = (1 - done) * half_life_of(o.beta1) + done * half_life_of(o.beta3);
    return power(0.5, 1 / half_life);
  }
  FUSEDOPTIM_INLINE static double half_life_of(double beta) { return -1 / log2_of(beta + 1e-8); }  // 0 has one as well
};

}  // namespace fusedoptim
