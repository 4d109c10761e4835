// What PTX instructions do, for the C++ that ptx_to_cpp.py writes: wherever C++'s own operators do not say it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "ptx_kernels.h"
#include "runtime.h"

namespace ptx {

using namespace cuda_on_cpu;

// What a register holds before it is set.
template <class T>
constexpr T kUnset = T(0xa5a5a5a5a5a5a5a5);

// An access of the type, which sanitizers see as one of its size and alignment.
#define AT(Type, address) (*reinterpret_cast<Type*>(address))

template <class T, int n>
struct alignas(n * sizeof(T)) Elements {
  T at[n];
};
using u8x2 = Elements<uint8_t, 2>;
using u8x4 = Elements<uint8_t, 4>;
using u16x2 = Elements<uint16_t, 2>;
using u16x4 = Elements<uint16_t, 4>;
using u32x2 = Elements<uint32_t, 2>;
using u32x4 = Elements<uint32_t, 4>;
using u64x2 = Elements<uint64_t, 2>;

template <class To, class From>
inline To reinterpret(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline float as_f32(uint32_t bits) { return reinterpret<float>(bits); }
inline double as_f64(uint64_t bits) { return reinterpret<double>(bits); }
inline uint32_t bits(float x) { return reinterpret<uint32_t>(x); }
inline uint64_t bits(double x) { return reinterpret<uint64_t>(x); }

template <class T>
constexpr int width = 8 * int(sizeof(T));

// ---- integers ------------------------------------------------------------------------------------------------------
template <class T>
inline T shift_left(T x, uint32_t by) {
  return by < width<T> ? T(uint64_t(x) << by) : T(0);
}

template <class T>
inline T shift_right(T x, uint32_t by) {
  if (by >= width<T>) return std::is_signed_v<T> && x < 0 ? T(-1) : T(0);
  return T(x >> by);
}

// The upper half, moved left by as many bits as come in from the lower one.
inline uint32_t funnel_left(uint32_t low, uint32_t high, uint32_t by) {
  return uint32_t(((uint64_t(high) << 32 | low) << by) >> 32);
}

// The lower half, moved right by as many bits as come in from the upper one.
inline uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t by) {
  return uint32_t((uint64_t(high) << 32 | low) >> by);
}

template <class T>
inline T multiply_low(T a, T b) {
  return T(uint64_t(a) * uint64_t(b));
}

template <class T>
inline T multiply_high(T a, T b) {
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return T(Wide(a) * Wide(b) >> width<T>);
}

// Division by zero gives what the machine likes.
template <class T>
inline T divide(T a, T b) {
  if (b == 0) throw Fault("division by zero");
  if (std::is_signed_v<T> && b == T(-1)) return T(0 - uint64_t(a));
  return T(a / b);
}

template <class T>
inline T remainder(T a, T b) {
  if (b == 0) throw Fault("division by zero");
  if (std::is_signed_v<T> && b == T(-1)) return T(0);
  return T(a % b);
}

template <class T>
inline T absolute(T x) {
  return x < 0 ? T(0 - uint64_t(x)) : x;
}

// Bits [from, from + count) of x, extended by their own sign if T has one.
template <class T>
inline T extract_bits(T x, uint32_t from, uint32_t count) {
  from &= 0xff;
  count &= 0xff;
  const uint32_t last = width<T> - 1;
  const auto bit = [x](uint32_t i) { return uint64_t(x) >> i & 1; };
  const bool sign = std::is_signed_v<T> && count > 0 && bit(std::min(from + count - 1, last));
  uint64_t result = 0;
  for (uint32_t i = 0; i <= last; ++i) {
    result |= (i < count && from + i <= last ? bit(from + i) : uint64_t(sign)) << i;
  }
  return T(result);
}

// `into`, its bits [from, from + count) replaced by the lowest ones of x.
template <class T>
inline T insert_bits(T x, T into, uint32_t from, uint32_t count) {
  from &= 0xff;
  count &= 0xff;
  for (uint32_t i = 0; i < count && from + i < uint32_t(width<T>); ++i) {
    const T mask = T(T(1) << (from + i));
    into = T((into & ~mask) | (x >> i & 1 ? mask : 0));
  }
  return into;
}

// Each nibble of `selector` picks one of the 8 bytes of high:low, or with its top bit that byte's sign eight times.
inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t from = uint64_t(high) << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> 4 * i;
    const uint8_t byte = uint8_t(from >> 8 * (nibble & 7));
    result |= uint32_t(nibble & 8 ? (byte & 0x80 ? 0xff : 0) : byte) << 8 * i;
  }
  return result;
}

// Bit 4a + 2b + c of `table`, for each bit of the three.
inline uint32_t look_up_bits(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (int i = 0; i < 32; ++i) result |= (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i;
  return result;
}

// ---- floating point ------------------------------------------------------------------------------------------------
// -0 counts as below +0. A NaN loses against a number.
template <class T>
inline T minimum(T a, T b) {
  if (a == b) return std::signbit(a) ? a : b;
  return a != a || b < a ? b : a;
}

template <class T>
inline T maximum(T a, T b) {
  if (a == b) return std::signbit(a) ? b : a;
  return a != a || b > a ? b : a;
}

// An integral x as an integer: the nearest there is, where x lies outside of the range.
template <class Integer, class Float>
inline Integer to_integer(Float x) {
  using Limits = std::numeric_limits<Integer>;
  if (x != x) {
    return sizeof(Float) < 8 && sizeof(Integer) < 8 ? Integer(0) : Integer(uint64_t(1) << (width<Integer> - 1));
  }
  if (x < Float(Limits::min())) return Limits::min();
  if (x >= std::ldexp(Float(1), Limits::digits)) return Limits::max();
  return Integer(x);
}

// binary16, as its bits.
inline float f16_to_f32(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 0x1f, fraction = half & 0x3ff;
  if (exponent == 0) return std::copysign(std::ldexp(float(fraction), -24), as_f32(sign));
  return as_f32(sign | (exponent == 0x1f ? 0xff : exponent + 112) << 23 | fraction << 13);
}

// To the nearest, ties to even.
inline uint16_t f32_to_f16(float x) {
  if (x != x) return 0x7fff;
  const uint32_t sign = bits(x) >> 16 & 0x8000, magnitude = bits(x) & 0x7fffffff;
  if (as_f32(magnitude) >= 65520) return uint16_t(sign | 0x7c00);
  if (as_f32(magnitude) < 0x1p-14f) return uint16_t(sign | uint32_t(std::nearbyint(as_f32(magnitude) * 0x1p24f)));
  return uint16_t(sign | (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

inline float bf16_to_f32(uint16_t x) { return as_f32(uint32_t(x) << 16); }

inline uint16_t f32_to_bf16(float x) {
  if (x != x) return 0x7fff;
  return uint16_t((bits(x) + 0x7fff + (bits(x) >> 16 & 1)) >> 16);
}

// ---- atomics -------------------------------------------------------------------------------------------------------
template <class T>
inline T atomic_increase(uint64_t address, T last) {
  return atomic_update(&AT(T, address), [last](T old) { return old >= last ? T(0) : T(old + 1); });
}

template <class T>
inline T atomic_decrease(uint64_t address, T last) {
  return atomic_update(&AT(T, address), [last](T old) { return old == 0 || old > last ? last : T(old - 1); });
}

template <class T>
inline T atomic_add(uint64_t address, T x) {
  return atomic_update(&AT(T, address), [x](T old) { return T(old + x); });
}

template <class T>
inline T atomic_min(uint64_t address, T x) {
  return atomic_update(&AT(T, address), [x](T old) { return std::min(old, x); });
}

template <class T>
inline T atomic_max(uint64_t address, T x) {
  return atomic_update(&AT(T, address), [x](T old) { return std::max(old, x); });
}

template <class T>
inline T atomic_exchange(uint64_t address, T x) {
  return atomic_update(&AT(T, address), [x](T) { return x; });
}

}  // namespace ptx
