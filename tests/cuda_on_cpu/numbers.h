// Numbers of every storage type, as bits: random ones, their comparison, their text.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <string>

#include "core/dtype.h"

namespace cuda_on_cpu {

using fusedoptim::DType;
using Random = std::mt19937_64;

struct Format {
  int exponent_bits, mantissa_bits;
};

inline Format format_of(DType dtype) {
  constexpr Format kFormats[] = {{11, 52}, {8, 23}, {8, 7}, {5, 10}, {}};
  return kFormats[int(dtype)];
}

inline const char* name_of(DType dtype) {
  constexpr const char* kNames[] = {"f64", "f32", "bf16", "f16", "u8"};
  return kNames[int(dtype)];
}

// Mostly numbers around 1, which meet each other in sums; one in sixteen is special, unless it is to be `plain`: a
// zero, a subnormal, the ends of the range, infinity, NaN. Of u8 any byte.
inline uint64_t random_number(DType dtype, bool negative_too, Random& random, bool plain = false) {
  if (dtype == DType::u8) return random() & 0xff;
  const Format format = format_of(dtype);
  const uint64_t largest_exponent = (uint64_t(1) << format.exponent_bits) - 1, bias = largest_exponent / 2;
  const uint64_t mantissas = uint64_t(1) << format.mantissa_bits;
  const auto number = [&](uint64_t exponent, uint64_t mantissa) { return exponent << format.mantissa_bits | mantissa; };
  const uint64_t bits = random(), any_mantissa = bits & (mantissas - 1), choice = bits >> 58;
  uint64_t magnitude = number(bias - 5 + (bits >> 53) % 10, any_mantissa);
  if (choice < 4 && !plain) {
    const uint64_t special[] = {number(0, 0),
                                number(0, 1),
                                number(0, any_mantissa),
                                number(1, any_mantissa),
                                number(bias, 0),
                                number(largest_exponent - 1, any_mantissa),
                                number(largest_exponent - 1, mantissas - 1),
                                number(largest_exponent, 0),
                                number(largest_exponent, mantissas / 2)};
    magnitude = special[random() % (sizeof(special) / sizeof(special[0]))];
  }
  const bool negative = negative_too && (random() & 1) != 0;
  return magnitude | uint64_t(negative) << (format.exponent_bits + format.mantissa_bits);
}

inline uint64_t load_number(DType dtype, const void* at) {
  uint64_t bits = 0;
  std::memcpy(&bits, at, fusedoptim::size_of(dtype));
  return bits;
}

inline bool is_nan(DType dtype, uint64_t bits) {
  if (dtype == DType::u8) return false;
  const Format format = format_of(dtype);
  const uint64_t infinity = ((uint64_t(1) << format.exponent_bits) - 1) << format.mantissa_bits;
  const uint64_t sign = uint64_t(1) << (format.exponent_bits + format.mantissa_bits);
  return (bits & (sign - 1)) > infinity;
}

// Equal bits, or two NaNs.
inline bool same_number(DType dtype, uint64_t a, uint64_t b) {
  return a == b || (is_nan(dtype, a) && is_nan(dtype, b));
}

inline std::string hexadecimal(DType dtype, uint64_t bits) {
  char text[24];
  std::snprintf(text, sizeof(text), "0x%0*llx", int(2 * fusedoptim::size_of(dtype)),
                static_cast<unsigned long long>(bits));
  return text;
}

}  // namespace cuda_on_cpu
