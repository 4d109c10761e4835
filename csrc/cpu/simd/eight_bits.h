// States in 8 bits. They are written in full first, and coded by `write_codes` once their block is complete.
#pragma once

#include "cpu/simd/stored.h"

namespace fusedoptim::FUSEDOPTIM_ISA {

using Signed = Raw<int32_t, kFloats>;
using Bytes = Raw<uint8_t, 4 * kFloats>;

// ---- four vectors of integers become one of bytes, those too large or small the nearest ---------------------------
struct Four {
  Signed parts[4];
};
#if defined(__x86_64__)
// In the order in which the instructions leave them.
template <bool is_unsigned>
FUSEDOPTIM_SIMD Bytes narrowed(const Four& v) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_packs_epi32(__m512i(v.parts[0]), __m512i(v.parts[1]));
  const __m512i high = _mm512_packs_epi32(__m512i(v.parts[2]), __m512i(v.parts[3]));
  return Bytes(is_unsigned ? _mm512_packus_epi16(low, high) : _mm512_packs_epi16(low, high));
#elif defined(__AVX2__)
  const __m256i low = _mm256_packs_epi32(__m256i(v.parts[0]), __m256i(v.parts[1]));
  const __m256i high = _mm256_packs_epi32(__m256i(v.parts[2]), __m256i(v.parts[3]));
  return Bytes(is_unsigned ? _mm256_packus_epi16(low, high) : _mm256_packs_epi16(low, high));
#else
  const __m128i low = _mm_packs_epi32(__m128i(v.parts[0]), __m128i(v.parts[1]));
  const __m128i high = _mm_packs_epi32(__m128i(v.parts[2]), __m128i(v.parts[3]));
  return Bytes(is_unsigned ? _mm_packus_epi16(low, high) : _mm_packs_epi16(low, high));
#endif
}
FUSEDOPTIM_SIMD Bytes ordered(Bytes bytes) {
#if defined(__AVX512F__)
  const __m512i from = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return Bytes(_mm512_permutexvar_epi32(from, __m512i(bytes)));
#elif defined(__AVX2__)
  return Bytes(_mm256_permutevar8x32_epi32(__m256i(bytes), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
#else
  return bytes;
#endif
}
#else
template <bool is_unsigned>
FUSEDOPTIM_SIMD Bytes narrowed(const Four& v) {
  constexpr int kLeast = is_unsigned ? 0 : -128, kMost = is_unsigned ? 255 : 127;
  Bytes bytes;
  for (int i = 0; i < 4 * kFloats; ++i) {
    const int32_t x = v.parts[i / kFloats][i % kFloats];
    bytes[i] = uint8_t(x < kLeast ? kLeast : x > kMost ? kMost : x);
  }
  return bytes;
}
FUSEDOPTIM_SIMD Bytes ordered(Bytes bytes) { return bytes; }
#endif

FUSEDOPTIM_SIMD Signed larger(Signed a, Signed b) { return a > b ? a : b; }

static __attribute__((noinline)) uint32_t largest_magnitude(const float* from, int64_t count) {
  Signed largest{}, other{};
  for (int64_t i = 0; i < count; i += 2 * kFloats) {
    largest = larger(largest, Signed(bits_of(load(from + i)) & 0x7fffffff));
    other = larger(other, Signed(bits_of(load(from + i + kFloats)) & 0x7fffffff));
  }
  largest = larger(largest, other);
#if defined(__AVX512F__)
  return uint32_t(_mm512_reduce_max_epi32(__m512i(largest)));
#else
  int32_t result = 0;
  for (int i = 0; i < kFloats; ++i) result = largest[i] > result ? largest[i] : result;
  return uint32_t(result);
#endif
}

template <Coding coding>
struct EightBits {
  using Element = uint8_t;
  using Beside = NoCompanion;
  static constexpr bool kHasSign = coding == Coding::sign;
  static constexpr bool kIsBf16 = false, kIsRandom = !kHasSign;
  static constexpr Stored kStored = kHasSign ? Stored::sign : Stored::magnitude;
  static constexpr uint32_t kBias = kHasSign ? kBiasOfSign : kBiasOfMagnitude;
  static constexpr int kTop = kHasSign ? kTopSign : kTopMagnitude;

  FUSEDOPTIM_SIMD static FloatVec decode(const uint8_t* from, FloatVec scale) {
    const FloatBits code = load_bits(from);
    FloatBits bits = code << kQuantumBits, magnitude = code;
    if constexpr (kHasSign) {
      magnitude = code & kTop;
      bits = (magnitude << kQuantumBits) | (code & 0x80) << 24;
    }
    return from_bits((magnitude != 0) ? bits + (kBias << kQuantumBits) : bits) * scale;
  }
  template <bool all_bf16>
  FUSEDOPTIM_SIMD static Pair read(const Place& p, int64_t i) {
    const FloatVec scale(p.scale);
    Pair v;
    v.parts[0] = decode(p.of<const uint8_t>(i), scale);
    v.parts[1] = decode(p.of<const uint8_t>(i + kFloats), scale);
    return v;
  }
  template <bool all_bf16>
  FUSEDOPTIM_SIMD static void write(const Place& p, int64_t i, const Pair& v) {
    store_pair(p.wide + i, v);
  }

  FUSEDOPTIM_SIMD static Bytes encode(const float* from, const uint16_t* random, FloatVec factor) {
    Four raw, codes;
    for (int k = 0; k < 4; ++k) {
      const FloatVec v = load(from + k * kFloats);
      const FloatBits magnitude = bits_of(v * factor) & 0x7fffffff;
      FloatBits up;
      if constexpr (kHasSign) {
        up = (magnitude >> kQuantumBits & 1) + ((1u << (kQuantumBits - 1)) - 1 - (kBias << kQuantumBits));
      } else {
        up = (load_bits(random + k * kFloats) << (kQuantumBits - 16)) +
             ((1u << (kQuantumBits - 17)) - (kBias << kQuantumBits));
      }
      raw.parts[k] = Signed(bits_of(v));
      codes.parts[k] = Signed(magnitude + up) >> kQuantumBits;
    }
    const Bytes code = narrowed<true>(codes), whole = narrowed<false>(raw);
    if constexpr (kHasSign) {
      return ordered(code | ((Bytes)(code != 0) & whole & 0x80));
    } else {
      const Bytes least = (Bytes)(whole != 0) & 1;  // what is not zero stays so
      return ordered(code > least ? code : least);
    }
  }

  // Codes `count` numbers of p.wide, behind which zeros follow up to a multiple of four vectors, and returns their
  // scale.
  static __attribute__((noinline)) float write_codes(const Place& p, int64_t count) {
    constexpr int kBytes = 4 * kFloats;
    const uint32_t scale = scale_of(largest_magnitude(p.wide, count)), inverse = inverse_of(scale);
    float as_float, factor;
    std::memcpy(&as_float, &scale, sizeof(float));
    std::memcpy(&factor, &inverse, sizeof(float));
    uint8_t* const to = p.of<uint8_t>(0);
    if (scale == kNaN) {
      std::memset(to, kTop, size_t(count));
      return as_float;
    }
    int64_t i = 0;
    for (; i + kBytes <= count; i += kBytes) {
      const Bytes codes = encode(p.wide + i, p.random + i, FloatVec(factor));
      std::memcpy(to + i, &codes, sizeof(codes));
    }
    if (i < count) {
      const Bytes codes = encode(p.wide + i, p.random + i, FloatVec(factor));
      std::memcpy(to + i, &codes, size_t(count - i));
    }
    return as_float;
  }
};

}  // namespace fusedoptim::FUSEDOPTIM_ISA
