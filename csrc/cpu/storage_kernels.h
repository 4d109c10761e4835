// Between what is stored and float32 in a buffer: one text for whole vectors and the rest.
#pragma once

#include "core/average.h"
#include "cpu/instruction_set.h"
#include "cpu/simd/random.h"
#include "cpu/simd/storage.h"

namespace fusedoptim::FUSEDOPTIM_ISA {

// How many elements of a vector are there: all, or the first few, beside which no byte is touched.
struct Whole {
  template <class S>
  FUSEDOPTIM_SIMD FloatVec get(const S* from) const {
    return load(from);
  }
  FUSEDOPTIM_SIMD void fetch(const void* from) const { __builtin_prefetch(static_cast<const char*>(from) + kAhead); }
  template <class S>
  FUSEDOPTIM_SIMD void put(S* to, FloatVec v) const {
    store(to, v);
  }
  template <class E>
  FUSEDOPTIM_SIMD FloatBits bits(const E* from) const {
    return load_bits(from);
  }
  template <class E>
  FUSEDOPTIM_SIMD void put_bits(E* to, FloatBits bits) const {
    store_bits(to, bits);
  }
};
struct Part {
  int count;
  FUSEDOPTIM_SIMD void fetch(const void*) const {}
  template <class S>
  FUSEDOPTIM_SIMD FloatVec get(const S* from) const {
    return load_part(from, count);
  }
  template <class S>
  FUSEDOPTIM_SIMD void put(S* to, FloatVec v) const {
    store_part(to, v, count);
  }
  template <class E>
  FUSEDOPTIM_SIMD FloatBits bits(const E* from) const {
    E whole[kFloats] = {};
    std::memcpy(whole, from, count * sizeof(E));
    return Whole().bits(whole);
  }
  template <class E>
  FUSEDOPTIM_SIMD void put_bits(E* to, FloatBits bits) const {
    E whole[kFloats];
    Whole().put_bits(whole, bits);
    std::memcpy(to, whole, count * sizeof(E));
  }
};

template <class Body>
FUSEDOPTIM_SIMD void for_vectors(int64_t count, Body body) {
  int64_t i = 0;
  for (; i + kFloats <= count; i += kFloats) body(i, Whole());
  if (i < count) body(i, Part{int(count - i)});
}

FUSEDOPTIM_SIMD FloatBits bits_of(FloatVec v) { return (FloatBits)v.raw; }
FUSEDOPTIM_SIMD FloatVec from_bits(FloatBits bits) { return FloatVec((FloatVec::R)bits); }
FUSEDOPTIM_SIMD FloatBits choose(FloatBits mask, FloatBits yes, FloatBits no) { return (mask & yes) | (~mask & no); }
// `bits`, or those of NaN where v is one, whose own could carry into a number when they are rounded.
FUSEDOPTIM_SIMD FloatBits unless_nan(FloatVec v, FloatBits bits) {
  return choose((FloatBits)(v.raw != v.raw), FloatBits{} + kNaN, bits);
}
FUSEDOPTIM_SIMD FloatVec without_nan_bits(FloatVec v) { return from_bits(unless_nan(v, bits_of(v))); }

// ---- one operand --------------------------------------------------------------------------------------------------
template <class S>
void read(const void* from, float* to, int64_t count) {
  const S* const at = static_cast<const S*>(from);
  for_vectors(count, [=](int64_t i, auto whole) {
    whole.fetch(at + i);
    whole.put(to + i, whole.get(at + i));
  });
}

template <class S>
void write(const float* from, void* to, int64_t count) {
  S* const at = static_cast<S*>(to);
  for_vectors(count, [=](int64_t i, auto whole) { whole.put(at + i, without_nan_bits(whole.get(from + i))); });
}

static void write_stochastic(const float* from, void* to, int64_t count, const uint16_t* random) {
  uint16_t* const at = static_cast<uint16_t*>(to);
  for_vectors(count, [=](int64_t i, auto whole) {
    const FloatVec v = whole.get(from + i);
    whole.put_bits(at + i, unless_nan(v, bits_of(v) + whole.bits(random + i)) >> 16);
  });
}

// ---- a parameter and its companion --------------------------------------------------------------------------------
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

// The nearest number that S holds. Of bf16 ties are rounded away from zero: then the remainder tells by its sign which
// way the number was rounded, so that parameters with a master and with a remainder have the same bits.
template <class S>
FUSEDOPTIM_SIMD FloatVec nearest(FloatVec v) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    return from_bits(unless_nan(v, (bits_of(v) + 0x8000) & 0xffff0000));
  } else {
    return nearest_even<S>(v);
  }
}

// A parameter that is not its master, rounded, has been changed since: the master follows it.
template <class S>
void read_master(const void* param, const void* master, float* to, int64_t count) {
  const S* const p = static_cast<const S*>(param);
  const float* const m = static_cast<const float*>(master);
  for_vectors(count, [=](int64_t i, auto whole) {
    whole.fetch(p + i);
    whole.fetch(m + i);
    const FloatVec own = whole.get(p + i), wide = whole.get(m + i);
    const FloatBits is_same = (FloatBits)(nearest<S>(wide).raw == own.raw);
    whole.put(to + i, from_bits(choose(is_same, bits_of(wide), bits_of(own))));
  });
}

template <class S>
void write_master(const float* from, void* param, void* master, int64_t count) {
  S* const p = static_cast<S*>(param);
  float* const m = static_cast<float*>(master);
  for_vectors(count, [=](int64_t i, auto whole) {
    const FloatVec v = whole.get(from + i);
    whole.put(m + i, v);
    whole.put(p + i, nearest<S>(v));
  });
}

// A remainder counts from the parameter up or down. One that would lead out of its numbers belongs to a parameter that
// has been changed since: below zero, and above infinity.
static void read_remainder(const void* param, const void* remainder, float* to, int64_t count) {
  const uint16_t* const p = static_cast<const uint16_t*>(param);
  const int16_t* const r = static_cast<const int16_t*>(remainder);
  for_vectors(count, [=](int64_t i, auto whole) {
    whole.fetch(p + i);
    whole.fetch(r + i);
    const FloatBits own = whole.bits(p + i) << 16, rest = whole.bits(r + i), magnitude = own & 0x7fffffff;
    const FloatBits is_below = (FloatBits)((Raw<int32_t, kFloats>)rest < 0);
    const FloatBits is_void =
        ((FloatBits)(magnitude == 0) & is_below) | ((FloatBits)(magnitude >= kInfinity) & ~is_below);
    whole.put(to + i, from_bits(own + (rest & ~is_void)));
  });
}

static void write_remainder(const float* from, void* param, void* remainder, int64_t count) {
  uint16_t* const p = static_cast<uint16_t*>(param);
  uint16_t* const r = static_cast<uint16_t*>(remainder);
  for_vectors(count, [=](int64_t i, auto whole) {
    const FloatVec v = whole.get(from + i);
    const FloatBits bits = unless_nan(v, bits_of(v));
    whole.put_bits(p + i, (bits + 0x8000) >> 16);
    whole.put_bits(r + i, bits);
  });
}

template <class S>
void read_compensated(const void* param, const void* compensation, float* to, int64_t count) {
  const S* const p = static_cast<const S*>(param);
  const S* const c = static_cast<const S*>(compensation);
  for_vectors(count, [=](int64_t i, auto whole) {
    whole.fetch(p + i);
    whole.fetch(c + i);
    whole.put(to + i, whole.get(p + i) + whole.get(c + i));
  });
}

template <class S>
void write_compensated(const float* from, void* param, void* compensation, int64_t count) {
  S* const p = static_cast<S*>(param);
  S* const c = static_cast<S*>(compensation);
  for_vectors(count, [=](int64_t i, auto whole) {
    const FloatVec v = without_nan_bits(whole.get(from + i));
    const FloatVec rounded = nearest_even<S>(v);
    whole.put(p + i, rounded);
    whole.put(c + i, without_nan_bits(v - rounded));
  });
}

// ---- 8 bits -------------------------------------------------------------------------------------------------------
template <Coding coding>
void read_8bit(const uint8_t* codes, float scale, float* to, int64_t count) {
  constexpr bool has_sign = coding == Coding::sign;
  for_vectors(count, [=](int64_t i, auto whole) {
    whole.fetch(codes + i);
    const FloatBits code = whole.bits(codes + i), magnitude = has_sign ? code & kTopSign : code;
    FloatBits bits = (magnitude + (has_sign ? kBiasOfSign : kBiasOfMagnitude)) << kQuantumBits;
    bits &= (FloatBits)(magnitude != 0);
    if (has_sign) bits |= (code & 0x80) << 24;
    whole.put(to + i, from_bits(bits) * FloatVec(scale));
  });
}

static uint32_t largest_magnitude(const float* from, int64_t count) {
  using Signed = Raw<int32_t, kFloats>;
  Signed largest{};
  for_vectors(count, [&](int64_t i, auto whole) {
    const Signed magnitude = Signed(bits_of(whole.get(from + i)) & 0x7fffffff);
    largest = magnitude > largest ? magnitude : largest;
  });
  int32_t result = 0;
  for (int i = 0; i < kFloats; ++i) result = largest[i] > result ? largest[i] : result;
  return uint32_t(result);
}

template <Coding coding>
float write_8bit(const float* from, uint8_t* codes, int64_t count, const uint16_t* random) {
  using Signed = Raw<int32_t, kFloats>;
  constexpr bool has_sign = coding == Coding::sign;
  constexpr uint32_t kBias = has_sign ? kBiasOfSign : kBiasOfMagnitude;
  const uint32_t scale = scale_of(largest_magnitude(from, count)), inverse = inverse_of(scale);
  float as_float, factor;
  std::memcpy(&as_float, &scale, 4);
  std::memcpy(&factor, &inverse, 4);
  if (scale == kNaN) {
    std::memset(codes, has_sign ? kTopSign : kTopMagnitude, size_t(count));
    return as_float;
  }
  const auto round = [=](auto random_of) {
    for_vectors(count, [=](int64_t i, auto whole) {
      const FloatVec v = whole.get(from + i);
      const FloatBits bits = bits_of(v * FloatVec(factor)), magnitude = bits & 0x7fffffff;
      Signed code = Signed((magnitude + random_of(magnitude, i, whole)) >> kQuantumBits) - int32_t(kBias);
      if (has_sign) {
        code = code > 0 ? code | Signed((bits >> 24) & 0x80) : Signed{};
      } else {  // what is positive stays so
        const Signed least = (bits_of(v) != 0) & 1;
        code = code > least ? code : least;
      }
      whole.put_bits(codes + i, FloatBits(code));
    });
  };
  constexpr uint32_t kHalf = 1u << (kQuantumBits - 1);
  if (random != nullptr) {
    round([=](FloatBits, int64_t i, auto whole) {
      return (whole.bits(random + i) << (kQuantumBits - 16)) | (1u << (kQuantumBits - 17));
    });
  } else {
    round([](FloatBits bits, int64_t, auto) { return kHalf - 1 + ((bits >> kQuantumBits) & 1); });
  }
  return as_float;
}

// -------------------------------------------------------------------------------------------------------------------
static void move_average(float* average, const float* param, int64_t count, double weight) {
  const Average<float> lerp(weight);
  for_vectors(count, [=](int64_t i, auto whole) {
    whole.put(average + i, lerp(whole.get(average + i), whole.get(param + i)));
  });
}

constexpr cpu::StorageKernels kStorage = {{nullptr, nullptr, read<BFloat16>, read<Half>},
                                          {nullptr, nullptr, write<BFloat16>, write<Half>},
                                          write_stochastic,
                                          {{},
                                           {nullptr, nullptr, read_master<BFloat16>, read_master<Half>},
                                           {nullptr, nullptr, read_remainder, nullptr},
                                           {nullptr, nullptr, read_compensated<BFloat16>, read_compensated<Half>}},
                                          {{},
                                           {nullptr, nullptr, write_master<BFloat16>, write_master<Half>},
                                           {nullptr, nullptr, write_remainder, nullptr},
                                           {nullptr, nullptr, write_compensated<BFloat16>, write_compensated<Half>}},
                                          {read_8bit<Coding::magnitude>, read_8bit<Coding::sign>},
                                          {write_8bit<Coding::magnitude>, write_8bit<Coding::sign>},
                                          random_bits,
                                          move_average};

}  // namespace fusedoptim::FUSEDOPTIM_ISA
