// Loops over the storages that are asked for most, with everything in registers: a loop that asks for each operand how
// it is stored takes half as long again in the cache.
#pragma once

#include "cpu/mixed_task.h"

namespace fusedoptim::FUSEDOPTIM_ISA {

// Updates as many whole V of a piece of `n` elements as there are, and returns how many elements these have.
template <template <class> class Rule>
using HotLoop = int64_t (*)(const Rule<float>& rule, MixedTask& task, int64_t n, float factor);

// ---- the table: storages of param, grad and states, and the variants of rules -------------------------------------
template <class... Storages>
struct Combination {
  static constexpr int kOperands = sizeof...(Storages);
};
template <class... Combinations>
struct Table {};

using F32 = Plain<float>;
using BF16 = Plain<BFloat16>;
using MasterBF16 = Master<BFloat16>;
using KahanBF16 = Compensated<BFloat16>;
using Sign = EightBits<Coding::sign>;
using Magnitude = EightBits<Coding::magnitude>;

using OfOneState = Table<Combination<F32, BF16, F32>, Combination<F32, F32, BF16>, Combination<F32, F32, Sign>,
                         Combination<MasterBF16, BF16, F32>, Combination<Remainder, BF16, F32>,
                         Combination<KahanBF16, BF16, BF16>, Combination<Stochastic, BF16, BF16>>;
using OfTwoStates = Table<Combination<F32, BF16, F32, F32>, Combination<F32, F32, BF16, Stochastic>,
                          Combination<F32, F32, Sign, Magnitude>, Combination<MasterBF16, BF16, F32, F32>,
                          Combination<Remainder, BF16, F32, F32>, Combination<Remainder, BF16, Sign, Magnitude>,
                          Combination<KahanBF16, BF16, BF16, BF16>, Combination<KahanBF16, BF16, BF16, Stochastic>,
                          Combination<BF16, BF16, BF16, Stochastic>, Combination<Stochastic, BF16, BF16, Stochastic>>;

constexpr bool is_one(const char* name, const char* other) {
  return *name == *other && (*name == 0 || is_one(name + 1, other + 1));
}
template <template <class> class Rule>
constexpr bool kIsAdam = is_one(Rule<float>::kName, "adam");
template <template <class> class Rule>
constexpr bool kIsSgd = is_one(Rule<float>::kName, "sgd");

// Whether operands that are all in one dtype of 16 bits have a loop of their own, and float32 one with averages.
template <template <class> class Rule>
constexpr bool kIsUsedMost = kIsAdam<Rule> || kIsSgd<Rule>;

template <template <class> class Rule, int variant>
constexpr bool is_hot() {
#if defined(__AVX2__)
  if constexpr (kIsAdam<Rule>) return count_of(Rule<float>::states_of(variant)) == 2;
  if constexpr (kIsSgd<Rule>) return variant % Rule<float>::kVelocities == Rule<float>::kNext;
#endif
  return false;
}

// Whether the rule has a `begin` and a `finish`.
template <template <class> class Rule>
constexpr bool kHasTwoParts = kIsAdam<Rule>;

// ---- the loop -----------------------------------------------------------------------------------------------------
template <template <class> class Rule, int variant, class Combination>
struct HotLoopOf;

template <template <class> class Rule, int variant, class Param, class Grad, class... States>
struct HotLoopOf<Rule, variant, Combination<Param, Grad, States...>> {
  using V = Pair;
  static constexpr bool kAllBf16 = Param::kIsBf16 && Grad::kIsBf16 && (States::kIsBf16 && ...);
  static constexpr int kStates = sizeof...(States);

  static bool matches(const Stored* stored) {
    constexpr Stored kWanted[] = {Param::kStored, Grad::kStored, States::kStored...};
    for (int k = 0; k < 2 + kStates; ++k) {
      if (stored[k] != kWanted[k]) return false;
    }
    return true;
  }

  // A line of an operand, of which a V takes one or more.
  template <class Element>
  FUSEDOPTIM_SIMD static void fetch(const void* at, int64_t i, int line) {
    if constexpr (!std::is_same_v<Element, NoCompanion>) {
      if (line == 0 || line < V::kLanes * int(sizeof(Element)) / kLine)
        __builtin_prefetch(static_cast<const char*>(at) + i * int64_t(sizeof(Element)) + kAhead + line * kLine);
    }
  }
  FUSEDOPTIM_SIMD static void fetch(const Place* places, int64_t i, int line) {
    fetch<typename Param::Element>(places[0].at, i, line);
    fetch<typename Param::Beside>(places[0].companion, i, line);
    fetch<typename Grad::Element>(places[1].at, i, line);
    int k = 2;
    (fetch<typename States::Element>(places[k++].at, i, line), ...);
  }

  // Elements of which the first half of a rule is done. The second begins with a square root, for which it would wait;
  // so the first half of the next elements comes before it. The first elements follow others, which go nowhere.
  struct Unfinished {
    Place to;
    V param, state, root;
  };
  FUSEDOPTIM_SIMD static void finish(const Rule<float>& rule, Unfinished& elements) {
    if constexpr (kHasTwoParts<Rule>) {
      rule.finish(elements.param, elements.state, elements.root);
      Param::template write<kAllBf16>(elements.to, 0, elements.param);
    }
  }

  static int64_t run(const Rule<float>& constants, MixedTask& task, int64_t n, float factor) {
    const Rule<float> rule = constants;
    Place places[2 + kStates];
    for (int k = 0; k < 2 + kStates; ++k) places[k] = task.place(k);
    const bool scales_grad = factor != 1, rounds_grad = task.rounds_grad();
    const int64_t whole = n / V::kLanes * V::kLanes;
    alignas(kLine) char nowhere[sizeof(V)];
    Unfinished before{places[0], V(0), V(0), V(0)};
    before.to.at = before.to.companion = nowhere;
    for (int64_t i = 0; i < whole; i += V::kLanes) {
      fetch(places, i, 0);
      V param = Param::template read<kAllBf16>(places[0], i);
      V grad = Grad::template read<kAllBf16>(places[1], i);
      if (scales_grad) grad = grad * V(factor);
      if (Grad::kStored == Stored::bf16 && rounds_grad)
        grad = nearest_even<BFloat16>(kAllBf16 ? grad : without_nan_bits(grad));
      int k = 2;
      V state[] = {States::template read<kAllBf16>(places[k++], i)...};
      if constexpr (kHasTwoParts<Rule>) {
        const V root = rule.template begin<variant>(param, grad, state);
        finish(rule, before);
        before = {moved<Param>(places[0], i), param, state[0], root};
      } else {
        rule.template operator()<variant>(param, grad, state);
        Param::template write<kAllBf16>(places[0], i, param);
      }
      k = 0;
      (write<States>(places, k++, i, state), ...);
      fetch(places, i, 1);
    }
    finish(rule, before);
    return whole;
  }
  template <class S>
  FUSEDOPTIM_SIMD static Place moved(Place place, int64_t i) {
    place.at = place.of<typename S::Element>(i);
    place.companion = place.companion_of<typename S::Beside>(i);
    place.random += S::kIsRandom ? i : 0;
    return place;
  }
  template <class S>
  FUSEDOPTIM_SIMD static void write(const Place* places, int k, int64_t i, const V* state) {
    S::template write<kAllBf16>(places[2 + k], i, state[k]);
  }
};

template <template <class> class Rule, int variant, class... Combinations>
HotLoop<Rule> find_hot(const Stored* stored, Table<Combinations...>) {
  HotLoop<Rule> found = nullptr;
  ((HotLoopOf<Rule, variant, Combinations>::matches(stored) ? void(found = HotLoopOf<Rule, variant, Combinations>::run)
                                                            : void()),
   ...);
  return found;
}

// The loop over a task, or null.
template <template <class> class Rule, int variant>
HotLoop<Rule> hot_loop(const MixedTask& task) {
  if constexpr (is_hot<Rule, variant>()) {
    if (task.averages()) return nullptr;
    using Combinations = std::conditional_t<count_of(Rule<float>::states_of(variant)) == 1, OfOneState, OfTwoStates>;
    return find_hot<Rule, variant>(task.stored(), Combinations());
  } else {
    return nullptr;
  }
}

}  // namespace fusedoptim::FUSEDOPTIM_ISA
