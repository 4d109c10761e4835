// The loop over any rule, compiled once per instruction set (FUSEDOPTIM_ISA names it).
#include <utility>

#include "core/average.h"
#include "cpu/instruction_set.h"
#include "cpu/mixed_loop.h"
#include "cpu/squares.h"

namespace fusedoptim {
namespace FUSEDOPTIM_ISA {

using cpu::InstructionSet;
using cpu::Kernel;

template <template <class> class Rule, class S, int variant, bool averages>
struct Loop {
  using T = Arithmetic<S>;
  static constexpr int kStates = Rule<T>::states_of(variant), kOperands = 2 + kStates + averages;

  // The constants of a step.
  struct Step {
    Rule<T> rule;
    T factor;
    Average<T> lerp;
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
    if constexpr (averages) {
      if constexpr (sizeof(S) < sizeof(T)) param = load(at[0]);  // as it is stored
      S* const average = at[2 + kStates];
      store(average, step.lerp(load(average), param));
    }
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
    const Step step{*static_cast<const Rule<T>*>(rule), T(factor), Average<T>(average_weight)};
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

// to = f(from), rounded as it is stored; `to` may be `from`.
template <class S, class F>
FUSEDOPTIM_SIMD void map(const S* from, S* to, int64_t count, F f) {
  constexpr int kLanes = Vec<Arithmetic<S>>::kLanes;
  for (; count >= kLanes; count -= kLanes, from += kLanes, to += kLanes) {
    __builtin_prefetch(reinterpret_cast<const char*>(from) + kAhead);
    store(to, f(load(from)));
  }
  if (count > 0) store_part(to, f(load_part(from, int(count))), int(count));
}

template <class S>
__attribute__((noinline)) void scale(const void* from, void* to, int64_t count, double factor) {
  const Vec<Arithmetic<S>> v{Arithmetic<S>(factor)};
  map(static_cast<const S*>(from), static_cast<S*>(to), count, [v](auto x) { return x * v; });
}

template <class S>
void unscale(const void* from, void* to, int64_t count, double scale_) {
  const double reciprocal = cpu::exact_reciprocal(scale_);
  if (reciprocal != 0) return scale<S>(from, to, count, reciprocal);
  const Vec<Arithmetic<S>> v{Arithmetic<S>(scale_)};
  map(static_cast<const S*>(from), static_cast<S*>(to), count, [v](auto x) { return x / v; });
}

// ---- the table of all of them -------------------------------------------------------------------------------------
template <template <class> class Rule, bool averages, int... variants>
constexpr void fill_rule(Kernel (&kernels)[kMaxVariants][kDTypes], std::integer_sequence<int, variants...>) {
  static_assert(sizeof...(variants) <= kMaxVariants, "raise kMaxVariants in rules/all.h");
  ((kernels[variants][int(DType::f64)] = Loop<Rule, double, variants, averages>::run), ...);
  ((kernels[variants][int(DType::f32)] = Loop<Rule, float, variants, averages>::run), ...);
  ((kernels[variants][int(DType::bf16)] = Loop<Rule, BFloat16, variants, averages>::run), ...);
  ((kernels[variants][int(DType::f16)] = Loop<Rule, Half, variants, averages>::run), ...);
}

template <template <class> class Rule, int... variants>
constexpr void fill_mixed(cpu::MixedKernel (&kernels)[kMaxVariants], std::integer_sequence<int, variants...>) {
  ((kernels[variants] = MixedLoop<Rule, variants>::run), ...);
}

template <template <class> class... Rules>
constexpr InstructionSet fill(const char* name, RuleList<Rules...>) {
  InstructionSet set{
      name,
      {},
      {},
      {unscale<double>, unscale<float>, unscale<BFloat16>, unscale<Half>},
      {scale<double>, scale<float>, scale<BFloat16>, scale<Half>},
      {squares<double>, squares<float>, squares<BFloat16>, squares<Half>},
      {squares_abreast<double>, squares_abreast<float>, squares_abreast<BFloat16>, squares_abreast<Half>},
      {}};
  int rule = 0;
  (fill_rule<Rules, false>(set.kernels[rule++], std::make_integer_sequence<int, Rules<float>::kVariants>()), ...);
  rule = 0;
  (fill_rule<Rules, true>(set.averaging[rule++], std::make_integer_sequence<int, Rules<float>::kVariants>()), ...);
  rule = 0;
  (fill_mixed<Rules>(set.mixed[rule++], std::make_integer_sequence<int, Rules<float>::kVariants>()), ...);
  return set;
}

#define FUSEDOPTIM_STRING(x) #x
#define FUSEDOPTIM_NAME(x) FUSEDOPTIM_STRING(x)
constexpr InstructionSet kSet = fill(FUSEDOPTIM_NAME(FUSEDOPTIM_ISA), AllRules());

}  // namespace FUSEDOPTIM_ISA

const cpu::InstructionSet* cpu::FUSEDOPTIM_ISA() { return &fusedoptim::FUSEDOPTIM_ISA::kSet; }

}  // namespace fusedoptim
