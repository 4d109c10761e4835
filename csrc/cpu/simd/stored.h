// What is stored, and how it becomes float32 in registers and is rounded back: one struct for each storage.
//
// `read` and `write` take a Pair of elements from number `i` on; all of it must be there. `all_bf16`: every operand is
// stored in bf16, so that elements go in pairs, and no NaN has a bit in its lower half.
#pragma once

#include <type_traits>

#include "core/storage.h"
#include "cpu/simd/words.h"

namespace fusedoptim::FUSEDOPTIM_ISA {

enum class Stored : uint8_t {
  f32,
  bf16,
  f16,
  stochastic,
  magnitude,
  sign,
  master_bf16,
  master_f16,
  remainder,
  compensated_bf16,
  compensated_f16
};

// Where an operand is, and what goes with it.
struct Place {
  void* at = nullptr;
  void* companion = nullptr;         // of a parameter
  const uint16_t* random = nullptr;  // 16 bits for each element that is rounded by them
  float* scales = nullptr;           // of the blocks of 8 bits, of which the first begins with element 0
  float* wide = nullptr;             // where the new numbers of that go, until the largest of them is known

  template <class S>
  FUSEDOPTIM_SIMD S* of(int64_t i) const {
    return static_cast<S*>(at) + i;
  }
  template <class S>
  FUSEDOPTIM_SIMD S* companion_of(int64_t i) const {
    return static_cast<S*>(companion) + i;
  }
};

template <class S>
FUSEDOPTIM_SIMD Pair load_pair(const S* from) {
  Pair v;
  v.parts[0] = load(from);
  v.parts[1] = load(from + kFloats);
  return v;
}
template <class S>
FUSEDOPTIM_SIMD void store_pair(S* to, const Pair& v) {
  store(to, v.parts[0]);
  store(to + kFloats, v.parts[1]);
}
template <bool in_pairs>
FUSEDOPTIM_SIMD Pair load_bf16(const void* from) {
  return widened(load_words<in_pairs>(from));
}

// The nearest number that S holds, ties to even, of what is not a NaN with bits.
template <class S>
FUSEDOPTIM_SIMD FloatVec nearest_even(FloatVec v) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    return from_bits(nearest_bf16(v) & 0xffff0000);
  } else {
    S stored[kFloats];
    store(stored, v);
    return load(stored);
  }
}
template <class S>
FUSEDOPTIM_SIMD Pair nearest_even(const Pair& v) {
  return Pair::each([](FloatVec x) { return nearest_even<S>(x); }, v);
}

struct NoCompanion {};

// In its dtype.
template <class S>
struct Plain {
  using Element = S;
  using Beside = NoCompanion;
  static constexpr bool kIsBf16 = std::is_same_v<S, BFloat16>, kIsRandom = false;
  static constexpr Stored kStored = kIsBf16 ? Stored::bf16 : sizeof(S) == 4 ? Stored::f32 : Stored::f16;

  template <bool all_bf16>
  FUSEDOPTIM_SIMD static Pair read(const Place& p, int64_t i) {
    if constexpr (kIsBf16) return load_bf16<all_bf16>(p.of<uint16_t>(i));
    return load_pair(p.of<const S>(i));
  }
  template <bool all_bf16>
  FUSEDOPTIM_SIMD static void write(const Place& p, int64_t i, Pair v) {
    if (!all_bf16 && sizeof(S) == 2) v = without_nan_bits(v);
    if constexpr (kIsBf16) {
      store_words<all_bf16>(p.of<uint16_t>(i), nearest_words(v));
    } else {
      store_pair(p.of<S>(i), v);
    }
  }
};

struct Stochastic : Plain<BFloat16> {
  static constexpr bool kIsRandom = true;
  static constexpr Stored kStored = Stored::stochastic;

  template <bool all_bf16>
  FUSEDOPTIM_SIMD static void write(const Place& p, int64_t i, Pair v) {
    if (!all_bf16) v = without_nan_bits(v);
    store_words<all_bf16>(p.of<uint16_t>(i), stochastic_words(v, load_words<all_bf16>(p.random + i)));
  }
};

// A parameter and its master. Of bf16 ties are rounded away from zero: then a remainder tells by its sign which way the
// number was rounded, so that parameters with a master and with a remainder have the same bits. A parameter that is not
// its master, rounded, has been changed since: the master follows it.
template <class S>
struct Master {
  using Element = S;
  using Beside = float;
  static constexpr bool kIsBf16 = false, kIsRandom = false;
  static constexpr Stored kStored = std::is_same_v<S, BFloat16> ? Stored::master_bf16 : Stored::master_f16;

  FUSEDOPTIM_SIMD static FloatVec choose(FloatVec own, FloatVec master) {
    FloatVec rounded = without_nan_bits(master);
    if constexpr (kStored == Stored::master_bf16) {
      rounded = from_bits((bits_of(rounded) + 0x8000) & 0xffff0000);
    } else {
      rounded = nearest_even<S>(rounded);
    }
    return FloatVec((rounded.raw == own.raw) ? master.raw : own.raw);
  }
  template <bool all_bf16>
  FUSEDOPTIM_SIMD static Pair read(const Place& p, int64_t i) {
    const Pair own = Plain<S>::template read<false>(p, i), master = load_pair(p.companion_of<const float>(i));
    return Pair::each([](FloatVec x, FloatVec y) { return choose(x, y); }, own, master);
  }
  template <bool all_bf16>
  FUSEDOPTIM_SIMD static void write(const Place& p, int64_t i, Pair v) {
    store_pair(p.companion_of<float>(i), v);
    if constexpr (kStored == Stored::master_bf16) {
      v = without_nan_bits(v);
      store_words<false>(p.of<uint16_t>(i), upper_halves(bits_of(v.parts[0]) + 0x8000, bits_of(v.parts[1]) + 0x8000));
    } else {
      store_pair(p.of<S>(i), v);
    }
  }
};

// A remainder counts from the parameter up or down. One that would lead out of its numbers belongs to a parameter that
// has been changed since: below zero, and above infinity.
struct Remainder {
  using Element = BFloat16;
  using Beside = int16_t;
  static constexpr bool kIsBf16 = false, kIsRandom = false;
  static constexpr Stored kStored = Stored::remainder;
  using Words = Raw<uint16_t, 2 * kFloats>;

  template <bool all_bf16>
  FUSEDOPTIM_SIMD static Pair read(const Place& p, int64_t i) {
    Words own, rest;
    std::memcpy(&own, p.of<uint16_t>(i), sizeof(own));
    std::memcpy(&rest, p.companion_of<int16_t>(i), sizeof(rest));
    const Words magnitude = own & 0x7fff, is_below = (Words)((Raw<int16_t, 2 * kFloats>)rest < 0);
    rest &= ~(((Words)(magnitude == 0) & is_below) | ((Words)(magnitude >= uint16_t(kInfinity >> 16)) & ~is_below));
    const FloatBits numbers = spread((FloatBits)own), rests = spread((FloatBits)rest);
    const auto upper = (Raw<int32_t, kFloats>)rests >> 16, lower = (Raw<int32_t, kFloats>)(rests << 16) >> 16;
    return pair_of((numbers << 16) + (FloatBits)lower, (numbers & 0xffff0000) + (FloatBits)upper);
  }
  template <bool all_bf16>
  FUSEDOPTIM_SIMD static void write(const Place& p, int64_t i, Pair v) {
    v = without_nan_bits(v);
    const FloatBits first = bits_of(v.parts[0]), second = bits_of(v.parts[1]);
    store_words<false>(p.of<uint16_t>(i), upper_halves(first + 0x8000, second + 0x8000));
    store_words<false>(p.companion_of<int16_t>(i), lower_halves(first, second));
  }
};

// A parameter, and what it lacks.
template <class S>
struct Compensated {
  using Element = S;
  using Beside = S;
  static constexpr bool kIsBf16 = std::is_same_v<S, BFloat16>, kIsRandom = false;
  static constexpr Stored kStored = kIsBf16 ? Stored::compensated_bf16 : Stored::compensated_f16;

  FUSEDOPTIM_SIMD static Place beside(Place p) {
    p.at = p.companion;
    return p;
  }
  template <bool all_bf16>
  FUSEDOPTIM_SIMD static Pair read(const Place& p, int64_t i) {
    return Plain<S>::template read<all_bf16>(p, i) + Plain<S>::template read<all_bf16>(beside(p), i);
  }
  template <bool all_bf16>
  FUSEDOPTIM_SIMD static void write(const Place& p, int64_t i, Pair v) {
    if (!all_bf16) v = without_nan_bits(v);
    Pair rounded;
    if constexpr (kIsBf16) {
      const FloatBits words = nearest_words(v);
      store_words<all_bf16>(p.of<uint16_t>(i), words);
      rounded = widened(words);
    } else {
      rounded = nearest_even<S>(v);
      store_pair(p.of<S>(i), rounded);
    }
    Plain<S>::template write<all_bf16>(beside(p), i, v - rounded);
  }
};

}  // namespace fusedoptim::FUSEDOPTIM_ISA
