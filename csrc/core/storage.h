// How operands are kept in memory where that is not simply in their dtype.
#pragma once

#include "core/dtype.h"
#include "rules/rule.h"

namespace fusedoptim {

// What a parameter of 16 bits has beside it, so that it stands for more digits than it holds.
enum class Companion : uint8_t {
  none,
  master,       // float32: the number itself, which the parameter rounds
  remainder,    // int16: the lower half of the number's bits, of which a bf16 parameter holds the upper half, rounded
  compensation  // of the parameter's dtype: what it lacks, rounded (Kahan)
};

constexpr int kCompanions = 4;

enum class Coding : uint8_t {
  nearest,     // in its dtype, rounded to nearest even
  stochastic,  // in bf16, rounded up or down by random bits, so that the mean of the result is the number
  magnitude,   // in 8 bits, of numbers of at least 0
  sign         // in 8 bits, of any
};

constexpr bool is_8bit(Coding coding) { return coding >= Coding::magnitude; }

// 8 bits hold the upper bits of a float32, relative to the scale of their block, a power of two: 3 of the significand,
// and 5 of the exponent, or 4 with the sign before them. Code 0 is 0.
constexpr int kQuantumBits = 20;        // of a float32 that are dropped
constexpr int64_t kBlockOf8Bits = 256;  // elements that share a scale
constexpr int kTopMagnitude = 255, kTopSign = 127;
constexpr uint32_t kOneOf8Bits = 127u << 23 >> kQuantumBits;  // 1, without the bits that are dropped
// Codes are these bits, less what makes the highest one, 1.875, the top code.
constexpr uint32_t kBiasOfMagnitude = kOneOf8Bits + 7 - kTopMagnitude, kBiasOfSign = kOneOf8Bits + 7 - kTopSign;

// The scale of a block, as bits of a float32: the power of two of its largest magnitude, rounded up to what codes hold,
// of which the highest is 1.875 times the scale. Not below 2^-95, so that every code stands for a normal number. NaN
// where the largest is not finite.
constexpr uint32_t kLeastScale = 32u << 23, kInfinity = 255u << 23, kNaN = 0x7fc00000;
FUSEDOPTIM_INLINE uint32_t scale_of(uint32_t largest) {
  const uint32_t scale = (largest + (1u << kQuantumBits) - 1) & kInfinity;
  return scale == kInfinity || largest > kInfinity ? kNaN : scale < kLeastScale ? kLeastScale : scale;
}
FUSEDOPTIM_INLINE uint32_t inverse_of(uint32_t scale) { return scale == 254u << 23 ? 1u << 22 : (254u << 23) - scale; }

// Blocks lie along the last dimension: of all others but the first are one with it. Of a tensor with one dimension they
// lie along that.
struct Blocks {
  int64_t columns;  // elements of a row, which begins with a new block
  constexpr int64_t in_row() const { return (columns + kBlockOf8Bits - 1) / kBlockOf8Bits; }
  constexpr int64_t begin(int64_t block) const { return block / in_row() * columns + block % in_row() * kBlockOf8Bits; }
  constexpr int64_t of(int64_t element) const {
    return element / columns * in_row() + element % columns / kBlockOf8Bits;
  }
};

}  // namespace fusedoptim
