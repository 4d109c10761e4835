// Between numbers in a thread's registers and operands as they are stored: all that a storage is, on the device, stands
// here. A thread takes a few elements at once, side by side. Bits are those of csrc/cpu/simd/stored.h.
#pragma once

#include <utility>

#include "core/philox.h"
#include "core/storage.h"
#include "cuda/device.cuh"

namespace fusedoptim::cuda {

// Calls `work` with 0 to count - 1, as constants: registers have no addresses, so whatever numbers them must be known
// when this is compiled.
template <int... numbers, class Work>
__device__ __forceinline__ void for_each_of(std::integer_sequence<int, numbers...>, const Work& work) {
  (work(std::integral_constant<int, numbers>()), ...);
}
template <int count, class Work>
__device__ __forceinline__ void for_each(const Work& work) {
  for_each_of(std::make_integer_sequence<int, count>(), work);
}

// Elements that a thread takes at once. Of float32 these are two accesses of 16 bytes, of 16 bits one, of 8 bits half
// of one; and a warp takes a block of 8 bits.
template <class T>
constexpr int kElements = sizeof(T) == 4 ? 8 : 2;
static_assert(kElements<float> * kWarp == kBlockOf8Bits && kElements<float> == kRandomsOfCounter);

// These elements as they lie in memory.
template <class T>
struct Raw {
  uint32_t words[kElements<T> * sizeof(T) / 4];
};

__device__ __forceinline__ bool is_8bit(Format format) { return format >= Format::magnitude; }

// ---- memory -------------------------------------------------------------------------------------------------------
// Whether all elements are there and lie so that accesses of 16 bytes reach them, or of 8 where that is all.
template <class T>
__device__ __forceinline__ bool is_whole(const char* at, int size, int count) {
  return count == kElements<T> && reinterpret_cast<uintptr_t>(at) % (size == 1 ? 8 : 16) == 0;
}

template <class T>
__device__ __forceinline__ void load(const char* at, int size, Raw<T>& raw) {
  const auto take = [&](int first) {
    const uint4 x = *reinterpret_cast<const uint4*>(global(at + 4 * first));
    raw.words[first] = x.x, raw.words[first + 1] = x.y, raw.words[first + 2] = x.z, raw.words[first + 3] = x.w;
  };
  if constexpr (sizeof(T) == 8) return take(0);
  if (size == 1) {
    const uint2 x = *reinterpret_cast<const uint2*>(global(at));
    raw.words[0] = x.x, raw.words[1] = x.y;
    return;
  }
  take(0);
  if (size == 4) take(4);
}

template <class T>
__device__ __forceinline__ void store(const Raw<T>& raw, char* at, int size) {
  const auto put = [&](int first) {
    const uint32_t* const x = raw.words + first;
    *reinterpret_cast<uint4*>(global(at + 4 * first)) = uint4{x[0], x[1], x[2], x[3]};
  };
  if constexpr (sizeof(T) == 8) return put(0);
  if (size == 1) {
    *reinterpret_cast<uint2*>(global(at)) = uint2{raw.words[0], raw.words[1]};
    return;
  }
  put(0);
  if (size == 4) put(4);
}

// Element i alone. `raw` must have been 0 there; the loops keep it in registers, which have no addresses.
template <class T>
__device__ __forceinline__ void load_one(const char* at, int size, int i, Raw<T>& raw) {
  constexpr int kWords = sizeof(raw.words) / 4, kEach = sizeof(T) / 4;
  if constexpr (sizeof(T) == 8) {
    const uint2 x = *reinterpret_cast<const uint2*>(global(at));
    for_each<kWords>([&](auto w) { raw.words[w] = w / kEach == i ? (w % kEach == 0 ? x.x : x.y) : raw.words[w]; });
  } else {
    const uint32_t x = size == 4   ? *reinterpret_cast<const uint32_t*>(global(at))
                       : size == 2 ? *reinterpret_cast<const uint16_t*>(global(at))
                                   : *reinterpret_cast<const uint8_t*>(global(at));
    const uint32_t moved = x << i * size % 4 * 8;
    for_each<kWords>([&](auto w) { raw.words[w] |= w == i * size / 4 ? moved : 0; });
  }
}

template <class T>
__device__ __forceinline__ void store_one(const Raw<T>& raw, int i, char* at, int size) {
  constexpr int kWords = sizeof(raw.words) / 4;
  if constexpr (sizeof(T) == 8) {
    uint2 x{};
    for_each<kElements<T>>([&](auto e) { x = e == i ? uint2{raw.words[2 * e], raw.words[2 * e + 1]} : x; });
    *reinterpret_cast<uint2*>(global(at)) = x;
  } else {
    uint32_t x = 0;
    for_each<kWords>([&](auto w) { x = w == i * size / 4 ? raw.words[w] : x; });
    x >>= i * size % 4 * 8;
    if (size == 4) {
      *reinterpret_cast<uint32_t*>(global(at)) = x;
    } else if (size == 2) {
      *reinterpret_cast<uint16_t*>(global(at)) = uint16_t(x);
    } else {
      *reinterpret_cast<uint8_t*>(global(at)) = uint8_t(x);
    }
  }
}

// ---- random bits --------------------------------------------------------------------------------------------------
// 16 for each of the elements that begin at `place` of the whole tensor, in their order, two to a word. Loops keep the
// code short.
__device__ __forceinline__ void random_bits(const RandomKey& key, uint64_t place, uint32_t* bits) {
  const uint64_t counter = place / kRandomsOfCounter;
  const int ahead = int(place % kRandomsOfCounter);  // elements of the first counter that are another thread's
  Counter first{}, second{};
#pragma unroll 1
  for (int i = ahead == 0 ? 0 : 1; i >= 0; --i) {
    second = first;
    first = philox(Counter::of(key, counter + i), key);
  }
#pragma unroll 1
  for (int i = 0; i < ahead; ++i) {
    for_each<3>([&](auto w) { first.words[w] = first.words[w] >> 16 | first.words[w + 1] << 16; });
    first.words[3] = first.words[3] >> 16 | second.words[0] << 16;
    for_each<3>([&](auto w) { second.words[w] = second.words[w] >> 16 | second.words[w + 1] << 16; });
    second.words[3] >>= 16;
  }
  for_each<4>([&](auto w) { bits[w] = first.words[w]; });
}

// Half i of words.
__device__ __forceinline__ uint32_t half_of(const uint32_t* words, int i) {
  return i % 2 == 0 ? words[i / 2] & 0xffff : words[i / 2] >> 16;
}
__device__ __forceinline__ void set_half(uint32_t* words, int i, uint32_t half) {
  words[i / 2] = i % 2 == 0 ? half : words[i / 2] | half << 16;
}

// ---- one number ---------------------------------------------------------------------------------------------------
__device__ __forceinline__ uint32_t bits_or_nan(float x) { return x == x ? __float_as_uint(x) : kNaN; }

__device__ __forceinline__ float from_16_bits(uint32_t bits, bool is_half) {
  return is_half ? widen(Half{uint16_t(bits)}) : __uint_as_float(bits << 16);
}

// ---- all elements of a thread -------------------------------------------------------------------------------------
__device__ __forceinline__ void decode(const Raw<double>& raw, Format, double* to) {
  for_each<kElements<double>>(
      [&](auto i) { to[i] = __hiloint2double(int(raw.words[2 * i + 1]), int(raw.words[2 * i])); });
}
__device__ __forceinline__ void decode(const Raw<float>& raw, Format format, float* to) {
  if (format == Format::f32) {
    for_each<8>([&](auto i) { to[i] = __uint_as_float(raw.words[i]); });
  } else if (format == Format::f16) {
    for_each<8>([&](auto i) { to[i] = widen(Half{uint16_t(half_of(raw.words, i))}); });
  } else {
    for_each<8>(
        [&](auto i) { to[i] = __uint_as_float(i % 2 == 0 ? raw.words[i / 2] << 16 : raw.words[i / 2] & 0xffff0000); });
  }
}

// Rounded to nearest.
__device__ __forceinline__ void encode(const double* from, Format, Raw<double>& raw) {
  for_each<kElements<double>>([&](auto i) {
    raw.words[2 * i] = uint32_t(__double2loint(from[i]));
    raw.words[2 * i + 1] = uint32_t(__double2hiint(from[i]));
  });
}
__device__ __forceinline__ void encode(const float* from, Format format, Raw<float>& raw) {
  raw = {};  // or what was there before would keep its registers until it is stored
  if (format == Format::f32) {
    for_each<8>([&](auto i) { raw.words[i] = __float_as_uint(from[i]); });
  } else if (format == Format::f16) {
    for_each<4>([&](auto w) { raw.words[w] = narrow_pair<Half>(from[2 * w], from[2 * w + 1]); });
  } else {
    for_each<4>([&](auto w) { raw.words[w] = narrow_pair<BFloat16>(from[2 * w], from[2 * w + 1]); });
  }
}

// Rounded to nearest, or by 16 random bits for each element.
__device__ __forceinline__ void encode(const float* from, Format format, const uint32_t* random, Raw<float>& raw) {
  if (format != Format::stochastic) return encode(from, format, raw);
  raw = {};
  for_each<8>([&](auto i) {
    const uint32_t up = __float_as_uint(from[i]) + half_of(random, i);
    set_half(raw.words, i, (from[i] == from[i] ? up : kNaN) >> 16);
  });
}

// ---- a parameter and its companion --------------------------------------------------------------------------------
// A number rounded to 16 bits as a parameter with a master is: of bf16 ties away from zero, as its remainder tells.
__device__ __forceinline__ uint32_t to_param(float x, bool is_half) {
  return is_half ? narrow<Half>(x).bits : (bits_or_nan(x) + 0x8000) >> 16;
}

__device__ __forceinline__ float joined_remainder(uint32_t own, uint32_t rest) {
  const uint32_t magnitude = own & 0x7fffffff;
  const bool is_below = int32_t(rest) < 0, is_void = is_below ? magnitude == 0 : magnitude >= kInfinity;
  return __uint_as_float(own + (is_void ? 0 : rest));
}

__device__ __forceinline__ void decode_pair(const Raw<float>& param, const Raw<float>& companion, Companion kind,
                                            bool is_half, float* to) {
  if (kind == Companion::master) {  // a parameter that is not its master, rounded, has been changed since
    for_each<8>([&](auto i) {
      const float own = from_16_bits(half_of(param.words, i), is_half), wide = __uint_as_float(companion.words[i]);
      to[i] = from_16_bits(to_param(wide, is_half), is_half) == own ? wide : own;
    });
  } else if (kind == Companion::remainder) {
    for_each<8>([&](auto i) {
      const auto rest = uint32_t(int32_t(int16_t(half_of(companion.words, i))));
      to[i] = joined_remainder(half_of(param.words, i) << 16, rest);
    });
  } else {
    for_each<8>([&](auto i) {
      to[i] = from_16_bits(half_of(param.words, i), is_half) + from_16_bits(half_of(companion.words, i), is_half);
    });
  }
}

__device__ __forceinline__ void encode_pair(const float* from, Companion kind, bool is_half, Raw<float>& param,
                                            Raw<float>& companion) {
  if (kind == Companion::compensation) {
    const Format format = is_half ? Format::f16 : Format::bf16;
    float rest[8];
    encode(from, format, param);
    decode(param, format, rest);
    for_each<8>([&](auto i) { rest[i] = from[i] - rest[i]; });
    encode(rest, format, companion);
  } else {
    param = companion = {};
    for_each<8>([&](auto i) { set_half(param.words, i, to_param(from[i], is_half)); });
    if (kind == Companion::master) {
      for_each<8>([&](auto i) { companion.words[i] = __float_as_uint(from[i]); });
    } else {
      for_each<8>([&](auto i) { set_half(companion.words, i, bits_or_nan(from[i]) & 0xffff); });
    }
  }
}

// ---- 8 bits -------------------------------------------------------------------------------------------------------
__device__ __forceinline__ void decode_8bit(const Raw<float>& raw, Format format, float scale, float* to) {
  const bool has_sign = format == Format::sign;
  const uint32_t top = has_sign ? kTopSign : kTopMagnitude, bias = has_sign ? kBiasOfSign : kBiasOfMagnitude;
  for_each<8>([&](auto i) {
    const uint32_t code = raw.words[i / 4] >> i % 4 * 8 & 0xff, magnitude = code & top;
    const uint32_t bits = (magnitude != 0 ? (magnitude + bias) << kQuantumBits : 0) | (code & ~top) << 24;
    to[i] = __uint_as_float(bits) * scale;
  });
}

// The largest magnitude among a thread's elements, as bits.
__device__ __forceinline__ uint32_t largest_of(const float* from, int count) {
  uint32_t largest = 0;
  for_each<8>([&](auto i) { largest = i < count ? max(largest, __float_as_uint(from[i]) & 0x7fffffff) : largest; });
  return largest;
}

// The largest of what a warp's threads have. That all of them take part is written into the instruction: of a mask in a
// register ptxas makes a call.
__device__ __forceinline__ uint32_t largest_of_warp(uint32_t largest) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("redux.sync.max.u32 %0, %0, 0xffffffff;" : "+r"(largest));
#else
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
#if defined(__CUDA_ARCH__)
    uint32_t other;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, 0xffffffff;" : "=r"(other) : "r"(largest), "r"(lanes));
#else
    const uint32_t other = __shfl_xor_sync(0xffffffff, largest, lanes);
#endif
    largest = max(largest, other);
  }
#endif
  return largest;
}

__device__ __forceinline__ void encode_8bit(const float* from, Format format, uint32_t scale, const uint32_t* random,
                                            Raw<float>& raw) {
  const bool has_sign = format == Format::sign;
  const int32_t top = has_sign ? kTopSign : kTopMagnitude, bias = has_sign ? kBiasOfSign : kBiasOfMagnitude;
  const float inverse = __uint_as_float(inverse_of(scale));
  constexpr uint32_t kHalf = 1u << (kQuantumBits - 1);
  raw = {};
  for_each<8>([&](auto i) {
    const uint32_t bits = __float_as_uint(from[i] * inverse), magnitude = bits & 0x7fffffff;
    const uint32_t up = has_sign ? kHalf - 1 + (magnitude >> kQuantumBits & 1)
                                 : half_of(random, i) << (kQuantumBits - 16) | 1u << (kQuantumBits - 17);
    // A magnitude that is not 0 stays so.
    const int32_t code = int32_t((magnitude + up) >> kQuantumBits) - bias;
    const int32_t least = !has_sign && __float_as_uint(from[i]) != 0 ? 1 : 0;
    uint32_t stored = uint32_t(max(code, least));
    if (has_sign && code > 0) stored |= bits >> 24 & 0x80;
    raw.words[i / 4] |= (scale == kNaN ? uint32_t(top) : stored & 0xff) << i % 4 * 8;
  });
}

// ---- a state, in whatever it is stored ----------------------------------------------------------------------------
// What its storage may need beside the numbers. `count` elements are there.
struct Surroundings {
  const Row& row;
  const double& step;  // the step count, after its increment
  int64_t first;       // element of the row
  int64_t block;       // of 8 bits
  int count;
};

__device__ __forceinline__ void decode_state(const Raw<double>& raw, Format format, int, const Surroundings&,
                                             double* to) {
  decode(raw, format, to);
}
__device__ __forceinline__ void decode_state(const Raw<float>& raw, Format format, int state,
                                             const Surroundings& surroundings, float* to) {
  if (!is_8bit(format)) return decode(raw, format, to);
  decode_8bit(raw, format, surroundings.row.scales[state][surroundings.block], to);
}

// The bits that operand k takes, or 0.
__device__ __forceinline__ void random_bits_of(int k, Format format, const Surroundings& surroundings, uint32_t* bits) {
  const Row& row = surroundings.row;
  if (!is_random(format)) return;
  random_bits(RandomKey::of(row.seed, surroundings.step, row.parameter, k),
              uint64_t(row.first_element + surroundings.first), bits);
}

__device__ __forceinline__ void encode_state(const double* from, Format format, int, const Surroundings&,
                                             Raw<double>& raw) {
  encode(from, format, raw);
}
__device__ __forceinline__ void encode_state(const float* from, Format format, int state,
                                             const Surroundings& surroundings, Raw<float>& raw) {
  uint32_t bits[4] = {};
  random_bits_of(2 + state, format, surroundings, bits);
  if (!is_8bit(format)) return encode(from, format, bits, raw);
  const uint32_t scale = scale_of(largest_of_warp(largest_of(from, surroundings.count)));
  encode_8bit(from, format, scale, bits, raw);
  // All lanes have read the old one: largest_of_warp() waits for what they made of it.
  if (threadIdx.x % kWarp == 0) surroundings.row.scales[state][surroundings.block] = __uint_as_float(scale);
}

// ---- the parameter, with its companion if it has one --------------------------------------------------------------
__device__ __forceinline__ void decode_param(const Raw<double>* raw, int, Format format, Companion, double* to) {
  decode(raw[0], format, to);
}
__device__ __forceinline__ void decode_param(const Raw<float>* raw, int companion, Format format, Companion kind,
                                             float* to) {
  if (kind == Companion::none) return decode(raw[0], format, to);
  decode_pair(raw[0], raw[companion], kind, format == Format::f16, to);
}

__device__ __forceinline__ void encode_param(const double* from, Format format, Companion, const Surroundings&, int,
                                             Raw<double>* raw) {
  encode(from, format, raw[0]);
}
__device__ __forceinline__ void encode_param(const float* from, Format format, Companion kind,
                                             const Surroundings& surroundings, int companion, Raw<float>* raw) {
  if (kind != Companion::none) return encode_pair(from, kind, format == Format::f16, raw[0], raw[companion]);
  uint32_t bits[4] = {};
  random_bits_of(0, format, surroundings, bits);
  encode(from, format, bits, raw[0]);
}

}  // namespace fusedoptim::cuda
