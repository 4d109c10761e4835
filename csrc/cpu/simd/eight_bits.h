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

FUSEDOPTIM_SIMD uint32_t largest_magnitude(const float* from, int64_t count) {
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

// a + add, and 1 where bit number `bit` of a is set.
template <int bit>
FUSEDOPTIM_SIMD FloatBits nearest_up(FloatBits a, uint32_t add) {
#if defined(__AVX512F__)
  const __m512i sum = __m512i(a + add);
  const __mmask16 odd = _mm512_test_epi32_mask(__m512i(a), _mm512_set1_epi32(1 << bit));
  return FloatBits(_mm512_mask_add_epi32(sum, odd, sum, _mm512_set1_epi32(1)));
#else
  return a + add + (a >> bit & 1);
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
  static constexpr uint32_t kOne = 127u << 23;
  static constexpr int kTop = kHasSign ? kTopSign : kTopMagnitude;

  // Before they are multiplied by the scale.
  FUSEDOPTIM_SIMD static Pair decode(const uint8_t* from) {
#if defined(__AVX512F__)
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m512i code = kHasSign ? _mm512_cvtepi8_epi16(bytes) : _mm512_cvtepu8_epi16(bytes);
    __m512i words = _mm512_slli_epi16(code, kQuantumBits - 16);  // the upper halves
    if constexpr (kHasSign)
      words = _mm512_and_si512(words, _mm512_set1_epi16(int16_t(0x8000 | kTop << (kQuantumBits - 16))));
    const __mmask32 is_number = _mm512_test_epi16_mask(code, _mm512_set1_epi16(kTop));
    words = _mm512_mask_add_epi16(words, is_number, words, _mm512_set1_epi16(kBias << (kQuantumBits - 16)));
    return widened(spread(FloatBits(words)));
#else
    Pair v;
    for (int k = 0; k < 2; ++k) {
      const FloatBits code = load_bits(from + k * kFloats), magnitude = code & kTop;
      FloatBits bits = (magnitude != 0) ? (magnitude + kBias) << kQuantumBits : FloatBits{};
      if constexpr (kHasSign) bits |= (code & 0x80) << 24;
      v.parts[k] = from_bits(bits);
    }
    return v;
#endif
  }
  template <bool all_bf16>
  FUSEDOPTIM_SIMD static Pair read(const Place& p, int64_t i) {
    return decode(p.of<const uint8_t>(i)) * Pair(p.scales[i / kBlockOf8Bits]);
  }
  template <bool all_bf16>
  FUSEDOPTIM_SIMD static void write(const Place& p, int64_t i, const Pair& v) {
    store_pair(p.wide + i, v);
  }

  // `less`: what a float32 has in its bits more than a code, which is the distance of their exponents.
  FUSEDOPTIM_SIMD static Bytes encode(const float* from, const uint16_t* random, int64_t i, uint32_t less) {
    Four raw, codes;
    for (int k = 0; k < 4; ++k) {
      const FloatBits bits = bits_of(load(from + i + k * kFloats)), magnitude = bits & 0x7fffffff;
      FloatBits sum;
      if constexpr (kHasSign) {
        sum = nearest_up<kQuantumBits>(magnitude, ((1u << (kQuantumBits - 1)) - 1) - less);
      } else {
        const FloatBits up = load_bits(random + i + k * kFloats) << (kQuantumBits - 16);
        sum = magnitude + ((1u << (kQuantumBits - 17)) - less) + up;
      }
      raw.parts[k] = Signed(bits);
      codes.parts[k] = Signed(sum) >> kQuantumBits;
    }
    const Bytes code = narrowed<true>(codes), whole = narrowed<false>(raw);
    if constexpr (kHasSign) {
      return ordered(code | ((Bytes)(code != 0) & whole & 0x80));
    } else {
      const Bytes least = (Bytes)(whole != 0) & 1;  // what is not zero stays so
      return ordered(code > least ? code : least);
    }
  }

  // Codes `count` numbers of p.wide, behind which zeros follow up to a multiple of four vectors.
  static __attribute__((noinline)) void write_codes(const Place& p, int64_t count) {
    for (int64_t begin = 0; begin < count; begin += kBlockOf8Bits) {
      const int64_t n = count - begin < kBlockOf8Bits ? count - begin : kBlockOf8Bits;
      const uint16_t* const random = kHasSign ? nullptr : p.random + begin;
      write_block(p.wide + begin, random, n, p.of<uint8_t>(begin), p.scales + begin / kBlockOf8Bits);
    }
  }

 private:
  FUSEDOPTIM_SIMD static void write_block(const float* from, const uint16_t* random, int64_t count, uint8_t* to,
                                          float* scale_to) {
    constexpr int kBytes = 4 * kFloats;
    const uint32_t scale = scale_of(largest_magnitude(from, count)), less = (kBias << kQuantumBits) + scale - kOne;
    std::memcpy(scale_to, &scale, sizeof(scale));
    if (scale == kNaN) {
      std::memset(to, kTop, size_t(count));
      return;
    }
    int64_t i = 0;
    for (; i + kBytes <= count; i += kBytes) {
      const Bytes codes = encode(from, random, i, less);
      std::memcpy(to + i, &codes, sizeof(codes));
    }
    if (i < count) {
      const Bytes codes = encode(from, random, i, less);
      std::memcpy(to + i, &codes, size_t(count - i));
    }
  }
};

}  // namespace fusedoptim::FUSEDOPTIM_ISA
