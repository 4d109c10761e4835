// The loop over a rule, compiled once per rule and instruction set: FUSEDOPTIM_RULE and FUSEDOPTIM_ISA name them.
#include <utility>

#include "cpu/instruction_set.h"
#include "cpu/mixed_loop.h"
#include FUSEDOPTIM_RULE_HEADER

namespace fusedoptim {
namespace FUSEDOPTIM_ISA {

using cpu::RuleKernels;

template <template <class> class Rule, class S, int variant, bool averages = false>
struct Loop {
  using T = Arithmetic<S>;
  static constexpr int kStates = count_of(Rule<T>::states_of(variant)), kOperands = 2 + kStates + averages;

  // The constants of a step.
  struct Step {
    Rule<T> rule;
    T factor;
    Lerp<T> lerp;
  };

  // Updates one V. `load` and `store` decide how many elements move, so that body and tail are this one text.
  template <class V, class Load, class Store>
  FUSEDOPTIM_SIMD static void update(const Step& step, S* const* at, Load load, Store store) {
    V state[kStates + 1];
    V param = load(at[0]);
    const V grad = load(at[1]) * V(step.factor);
    for (int k = 0; k < kStates; ++k) state[k] = load(at[2 + k]);
    step.rule.template operator()<variant>(param, grad, state);
    store(at[0], param);
    for (int k = 0; k < kStates; ++k) store(at[2 + k], state[k]);
    if constexpr (averages) store(at[2 + kStates], step.lerp(load(at[2 + kStates]), param));
  }

  FUSEDOPTIM_SIMD static void fetch_line(S* const* at, int line) {
    for (int k = 0; k < kOperands; ++k) {
      __builtin_prefetch(reinterpret_cast<const char*>(at[k]) + kAhead + line * kLine);
    }
  }

  // Updates as many whole V as there are. Where V takes several cache lines, those after the first are fetched when it
  // is done: fetched together, they make a step from memory 4 % slower.
  template <class V>
  FUSEDOPTIM_SIMD static void walk(const Step& step, S** at, int64_t& left) {
    for (; left >= V::kLanes; left -= V::kLanes) {
      fetch_line(at, 0);
      const auto load = [](const S* from) {
        V v;
        load_into(v, from);
        return v;
      };
      update<V>(step, at, load, [](S* to, const V& v) { store(to, v); });
      for (int line = 1; line < V::kLanes * int(sizeof(S)) / kLine; ++line) fetch_line(at, line);
      for (int k = 0; k < kOperands; ++k) at[k] += V::kLanes;
    }
  }

  static void run(const void* rule, void* const* operands, int64_t begin, int64_t count, double factor,
                  double average_weight) {
    const Step step{*static_cast<const Rule<T>*>(rule), T(factor), Lerp<T>(average_weight)};
    S* at[kOperands];
    for (int k = 0; k < kOperands; ++k) at[k] = static_cast<S*>(operands[k]) + begin;
    int64_t left = count;
    if constexpr (kUnroll<S> > 1) walk<UnrolledOf<S>>(step, at, left);
    walk<Vec<T>>(step, at, left);
    if (left > 0) {
      const int part = int(left);
      update<Vec<T>>(
          step, at, [part](const S* p) { return load_part(p, part); },
          [part](S* p, Vec<T> v) { store_part(p, v, part); });
    }
  }
};

// ---- the kernels of the rule --------------------------------------------------------------------------------------
template <template <class> class Rule, int... variants>
constexpr RuleKernels fill(std::integer_sequence<int, variants...>) {
  static_assert(sizeof...(variants) <= kMaxVariants, "raise kMaxVariants in rules/limits.h");
  RuleKernels kernels{};
  ((kernels.plain[variants][int(DType::f64)] = Loop<Rule, double, variants>::run), ...);
  ((kernels.plain[variants][int(DType::f32)] = Loop<Rule, float, variants>::run), ...);
  if constexpr (kIsUsedMost<Rule>) {
    ((kernels.averaging[variants] = Loop<Rule, float, variants, true>::run), ...);
    ((kernels.plain[variants][int(DType::bf16)] = Loop<Rule, BFloat16, variants>::run), ...);
    ((kernels.plain[variants][int(DType::f16)] = Loop<Rule, Half, variants>::run), ...);
  }
  ((kernels.mixed[variants] = MixedLoop<Rule, variants>::run), ...);
  return kernels;
}

template <template <class> class Rule>
constexpr RuleKernels kKernels = fill<Rule>(std::make_integer_sequence<int, Rule<float>::kVariants>());

template <template <class> class Rule>
const RuleKernels& kernels_of() {
  return kKernels<Rule>;
}
template const RuleKernels& kernels_of<FUSEDOPTIM_RULE>();

}  // namespace FUSEDOPTIM_ISA
}  // namespace fusedoptim
