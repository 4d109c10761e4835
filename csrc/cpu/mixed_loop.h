// The loop over any rule for operands that are not all stored in one dtype.
#pragma once

#include "cpu/hot_loop.h"

namespace fusedoptim::FUSEDOPTIM_ISA {

template <template <class> class Rule, int variant>
struct MixedLoop {
  using V = MixedTask::V;
  static constexpr int kStates = count_of(Rule<float>::states_of(variant));

  static __attribute__((noinline)) void update(const Rule<float>& rule, const MixedTask& task, int64_t i,
                                               float factor) {
    V state[kStates + 1], param = task.param(i);
    const V grad = task.grad(i, factor);
    for (int k = 0; k < kStates; ++k) state[k] = task.state(k, i);
    rule.template operator()<variant>(param, grad, state);
    task.put_param(i, param);
    for (int k = 0; k < kStates; ++k) task.put_state(k, i, state[k]);
  }

  static void run(const Task& task, void* const* at, int64_t first, int64_t count, double factor) {
    const Rule<float> rule = *static_cast<const Rule<float>*>(task.constants);
    const float by = float(factor);
    MixedTask mixed(task, at, first, factor);
    const HotLoop<Rule> hot = hot_loop<Rule, variant>(mixed);
    for (int64_t left = count; left > 0;) {
      const int64_t n = mixed.begin(left);
      int64_t i = hot != nullptr ? hot(rule, mixed, n, by) : 0;
      for (; i < n; i += V::kLanes) {
        if (i % MixedTask::kAtOnce == 0) mixed.prepare(i);
        if (i + V::kLanes <= n) {
          update(rule, mixed, i, by);
        } else {
          mixed.rest(i, n - i, [&] { update(rule, mixed, 0, by); });
        }
      }
      mixed.end(n);
      left -= n;
    }
  }
};

}  // namespace fusedoptim::FUSEDOPTIM_ISA
