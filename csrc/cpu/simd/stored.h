// What is stored, and how it becomes float32 in a register and is rounded back: one struct for each storage.
//
// `read` and `write` take one vector of elements from number `i` on; all of it must be there.
#pragma once

#include <type_traits>

#include "core/storage.h"
#include "cpu/simd/storage.h"

namespace fusedoptim::FUSEDOPTIM_ISA {

// Where an operand is, and what goes with it.
struct Place {
  void* at = nullptr;
  void* companion = nullptr;         // of a parameter
  const uint16_t* random = nullptr;  // 16 bits for each element that is rounded by them
  float scale = 0;                   // of a block of 8 bits
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

FUSEDOPTIM_SIMD FloatBits bits_of(FloatVec v) { return (FloatBits)v.raw; }
FUSEDOPTIM_SIMD FloatVec from_bits(FloatBits bits) { return FloatVec((FloatVec::R)bits); }
FUSEDOPTIM_SIMD FloatBits choose(FloatBits mask, FloatBits yes, FloatBits no) { return (mask & yes) | (~mask & no); }
// `bits`, or those of NaN where v is one, whose own could carry into a number when they are rounded.
FUSEDOPTIM_SIMD FloatBits unless_nan(FloatVec v, FloatBits bits) {
  return choose((FloatBits)(v.raw != v.raw), FloatBits{} + kNaN, bits);
}
FUSEDOPTIM_SIMD FloatVec without_nan_bits(FloatVec v) { return from_bits(unless_nan(v, bits_of(v))); }

// The nearest number that S holds, ties to even; of a NaN, without_nan_bits is asked for first.
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

// In its dtype.
template <class S>
struct Plain {
  using Element = S;
  FUSEDOPTIM_SIMD static FloatVec read(const Place& p, int64_t i) { return load(p.of<const S>(i)); }
  FUSEDOPTIM_SIMD static void write(const Place& p, int64_t i, FloatVec v) {
    store(p.of<S>(i), sizeof(S) == 2 ? without_nan_bits(v) : v);
  }
};

struct Stochastic : Plain<BFloat16> {
  FUSEDOPTIM_SIMD static void write(const Place& p, int64_t i, FloatVec v) {
    store_bits(p.of<uint16_t>(i), unless_nan(v, bits_of(v) + load_bits(p.random + i)) >> 16);
  }
};

// A parameter and its master. Of bf16 ties are rounded away from zero: then a remainder tells by its sign which way the
// number was rounded, so that parameters with a master and with a remainder have the same bits. A parameter that is not
// its master, rounded, has been changed since: the master follows it.
template <class S>
struct Master {
  using Element = S;
  FUSEDOPTIM_SIMD static FloatVec rounded(FloatVec v) {
    if constexpr (std::is_same_v<S, BFloat16>) {
      return from_bits(unless_nan(v, (bits_of(v) + 0x8000) & 0xffff0000));
    } else {
      return nearest_even<S>(v);
    }
  }
  FUSEDOPTIM_SIMD static FloatVec read(const Place& p, int64_t i) {
    const FloatVec own = load(p.of<const S>(i)), master = load(p.companion_of<const float>(i));
    const FloatBits is_same = (FloatBits)(rounded(master).raw == own.raw);
    return from_bits(choose(is_same, bits_of(master), bits_of(own)));
  }
  FUSEDOPTIM_SIMD static void write(const Place& p, int64_t i, FloatVec v) {
    store(p.companion_of<float>(i), v);
    if constexpr (std::is_same_v<S, BFloat16>) {
      store_bits(p.of<uint16_t>(i), bits_of(rounded(v)) >> 16);
    } else {
      store(p.of<S>(i), v);
    }
  }
};

// A remainder counts from the parameter up or down. One that would lead out of its numbers belongs to a parameter that
// has been changed since: below zero, and above infinity.
struct Remainder {
  using Element = BFloat16;
  FUSEDOPTIM_SIMD static FloatVec read(const Place& p, int64_t i) {
    const FloatBits own = load_bits(p.of<const uint16_t>(i)) << 16, rest = load_bits(p.companion_of<const int16_t>(i));
    const FloatBits magnitude = own & 0x7fffffff, is_below = (FloatBits)((Raw<int32_t, kFloats>)rest < 0);
    const FloatBits is_void =
        ((FloatBits)(magnitude == 0) & is_below) | ((FloatBits)(magnitude >= kInfinity) & ~is_below);
    return from_bits(own + (rest & ~is_void));
  }
  FUSEDOPTIM_SIMD static void write(const Place& p, int64_t i, FloatVec v) {
    const FloatBits bits = unless_nan(v, bits_of(v));
    store_bits(p.of<uint16_t>(i), (bits + 0x8000) >> 16);
    store_bits(p.companion_of<uint16_t>(i), bits & 0xffff);
  }
};

// A parameter, and what it lacks.
template <class S>
struct Compensated {
  using Element = S;
  FUSEDOPTIM_SIMD static FloatVec read(const Place& p, int64_t i) {
    return load(p.of<const S>(i)) + load(p.companion_of<const S>(i));
  }
  FUSEDOPTIM_SIMD static void write(const Place& p, int64_t i, FloatVec v) {
    const FloatVec number = without_nan_bits(v), rounded = nearest_even<S>(number);
    store(p.of<S>(i), rounded);
    store(p.companion_of<S>(i), without_nan_bits(number - rounded));
  }
};

// A state in 8 bits. It is written in full first, and coded by `write_codes` once the block is complete.
template <Coding coding>
struct EightBits {
  using Element = uint8_t;
  static constexpr bool kHasSign = coding == Coding::sign;
  static constexpr uint32_t kBias = kHasSign ? kBiasOfSign : kBiasOfMagnitude;
  static constexpr int kTop = kHasSign ? kTopSign : kTopMagnitude;

  FUSEDOPTIM_SIMD static FloatVec read(const Place& p, int64_t i) {
    const FloatBits code = load_bits(p.of<const uint8_t>(i)), magnitude = kHasSign ? code & kTop : code;
    FloatBits bits = ((magnitude + kBias) << kQuantumBits) & (FloatBits)(magnitude != 0);
    if (kHasSign) bits |= (code & 0x80) << 24;
    return from_bits(bits) * FloatVec(p.scale);
  }
  FUSEDOPTIM_SIMD static void write(const Place& p, int64_t i, FloatVec v) { store(p.wide + i, v); }

  // Codes `count` numbers of p.wide, behind which zeros follow up to a whole vector, and returns their scale.
  static float write_codes(const Place& p, int64_t count);
};

using Signed = Raw<int32_t, kFloats>;

static uint32_t largest_magnitude(const float* from, int64_t count) {
  Signed largest{};
  for (int64_t i = 0; i < count; i += kFloats) {
    const Signed magnitude = Signed(bits_of(load(from + i)) & 0x7fffffff);
    largest = magnitude > largest ? magnitude : largest;
  }
  int32_t result = 0;
  for (int i = 0; i < kFloats; ++i) result = largest[i] > result ? largest[i] : result;
  return uint32_t(result);
}

template <Coding coding>
__attribute__((noinline)) float EightBits<coding>::write_codes(const Place& p, int64_t count) {
  const uint32_t scale = scale_of(largest_magnitude(p.wide, count)), inverse = inverse_of(scale);
  float as_float, factor;
  std::memcpy(&as_float, &scale, sizeof(float));
  std::memcpy(&factor, &inverse, sizeof(float));
  uint8_t codes[kBlockOf8Bits + kFloats];
  if (scale == kNaN) {
    std::memset(p.at, kTop, size_t(count));
    return as_float;
  }
  for (int64_t i = 0; i < count; i += kFloats) {
    const FloatVec v = load(p.wide + i);
    const FloatBits bits = bits_of(v * FloatVec(factor)), magnitude = bits & 0x7fffffff;
    if constexpr (kHasSign) {
      const FloatBits up = ((1u << (kQuantumBits - 1)) - 1) + ((magnitude >> kQuantumBits) & 1);
      const Signed code = Signed((magnitude + up) >> kQuantumBits) - int32_t(kBias);
      store_bits(codes + i, FloatBits(code > 0 ? code | Signed((bits >> 24) & 0x80) : Signed{}));
    } else {
      const FloatBits up = (load_bits(p.random + i) << (kQuantumBits - 16)) | (1u << (kQuantumBits - 17));
      const Signed code = Signed((magnitude + up) >> kQuantumBits) - int32_t(kBias);
      const Signed least = (bits_of(v) != 0) & 1;  // what is positive stays so
      store_bits(codes + i, FloatBits(code > least ? code : least));
    }
  }
  std::memcpy(p.at, codes, size_t(count));
  return as_float;
}

// ---- which of them an operand is in -------------------------------------------------------------------------------
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

// Calls `work` with the struct for a number, which does not change while a loop runs: the branch is predicted.
template <class Work>
FUSEDOPTIM_SIMD void with_number(Stored stored, Work work) {
  switch (stored) {
    case Stored::f32:
      return work(Plain<float>());
    case Stored::bf16:
      return work(Plain<BFloat16>());
    default:
      return work(Plain<Half>());
  }
}
template <class Work>
FUSEDOPTIM_SIMD void with_state(Stored stored, Work work) {
  switch (stored) {
    case Stored::stochastic:
      return work(Stochastic());
    case Stored::magnitude:
      return work(EightBits<Coding::magnitude>());
    case Stored::sign:
      return work(EightBits<Coding::sign>());
    default:
      return with_number(stored, work);
  }
}
template <class Work>
FUSEDOPTIM_SIMD void with_param(Stored stored, Work work) {
  switch (stored) {
    case Stored::stochastic:
      return work(Stochastic());
    case Stored::master_bf16:
      return work(Master<BFloat16>());
    case Stored::master_f16:
      return work(Master<Half>());
    case Stored::remainder:
      return work(Remainder());
    case Stored::compensated_bf16:
      return work(Compensated<BFloat16>());
    case Stored::compensated_f16:
      return work(Compensated<Half>());
    default:
      return with_number(stored, work);
  }
}

}  // namespace fusedoptim::FUSEDOPTIM_ISA
