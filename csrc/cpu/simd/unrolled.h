// An unrolled vector: several that go through a rule at once, since one alone waits for its own results most of the
// time.
#pragma once

#include "cpu/simd/storage.h"

namespace fusedoptim::FUSEDOPTIM_ISA {

#if defined(__AVX512F__)
// a / b, rounded as division rounds it. The reciprocal of b is refined from an estimate, and the quotient by its
// remainder, which is exact: tests/proofs/division.cpp tries all mantissas that could differ, for whatever estimate
// within the 2^-14 that the instruction promises. The division itself is taken for the largest mantissas of b, which
// the proof leaves out, where something could overflow, or lose bits to underflow, and for infinity, NaN and zero.
FUSEDOPTIM_SIMD Vec<float> quotient(Vec<float> a, Vec<float> b) {
  constexpr int kLargerOf = 0b1011, kSmallerOf = 0b1010;  // two magnitudes
  constexpr int kAllButLowest = 0x7fffc0;  // bits of a mantissa; none is set in the reciprocals of the 64 largest ones
  __m512 y = _mm512_rcp14_ps(b.raw);
  const __m512 error = _mm512_fnmadd_ps(b.raw, y, _mm512_set1_ps(1));
  y = _mm512_fmadd_ps(_mm512_fmadd_ps(error, error, error), y, y);
  const __m512 q = _mm512_mul_ps(a.raw, y);
  const __m512 larger = _mm512_range_ps(b.raw, q, kLargerOf), smaller = _mm512_range_ps(b.raw, q, kSmallerOf);
  __mmask16 good = _mm512_test_epi32_mask(_mm512_castps_si512(y), _mm512_set1_epi32(kAllButLowest));
  good = _mm512_mask_cmp_ps_mask(good, larger, _mm512_set1_ps(0x1p50f), _CMP_LE_OQ);
  good = _mm512_mask_cmp_ps_mask(good, smaller, _mm512_set1_ps(0x1p-40f), _CMP_GE_OQ);
  if (__builtin_expect(good != 0xffff, 0)) return a / b;
  return Vec<float>(Raw<float, 16>(_mm512_fmadd_ps(_mm512_fnmadd_ps(b.raw, q, a.raw), y, q)));
}
#else
FUSEDOPTIM_SIMD Vec<float> quotient(Vec<float> a, Vec<float> b) { return a / b; }
#endif
FUSEDOPTIM_SIMD Vec<double> quotient(Vec<double> a, Vec<double> b) { return a / b; }

// `spares_divider`: of two divisions one is left to the divider, which takes square roots too, and the other is done by
// multiplications meanwhile.
template <class T, int count, bool spares_divider>
struct Unrolled {
  using V = Vec<T>;
  static constexpr int kLanes = count * V::kLanes;
  V parts[count];

  Unrolled() = default;
  FUSEDOPTIM_SIMD explicit Unrolled(T x) {
    for (V& part : parts) part = V(x);
  }
  template <class F, class... Operands>
  FUSEDOPTIM_SIMD static Unrolled each(F f, const Operands&... operands) {
    Unrolled result;
    for (int k = 0; k < count; ++k) result.parts[k] = f(operands.parts[k]...);
    return result;
  }

  friend FUSEDOPTIM_SIMD Unrolled operator+(Unrolled a, Unrolled b) {
    return each([](V x, V y) { return x + y; }, a, b);
  }
  friend FUSEDOPTIM_SIMD Unrolled operator-(Unrolled a, Unrolled b) {
    return each([](V x, V y) { return x - y; }, a, b);
  }
  friend FUSEDOPTIM_SIMD Unrolled operator*(Unrolled a, Unrolled b) {
    return each([](V x, V y) { return x * y; }, a, b);
  }
  friend FUSEDOPTIM_SIMD Unrolled operator/(Unrolled a, Unrolled b) {
    Unrolled result;
    for (int k = 0; k < count; ++k) {
      result.parts[k] = spares_divider && k % 2 == 1 ? quotient(a.parts[k], b.parts[k]) : a.parts[k] / b.parts[k];
    }
    return result;
  }
  friend FUSEDOPTIM_SIMD Unrolled fma(Unrolled a, Unrolled b, Unrolled c) {
    return each([](V x, V y, V z) { return fma(x, y, z); }, a, b, c);
  }
  friend FUSEDOPTIM_SIMD Unrolled sqrt(Unrolled a) {
    return each([](V x) { return sqrt(x); }, a);
  }
  friend FUSEDOPTIM_SIMD Unrolled if_nonzero(Unrolled test, Unrolled yes, Unrolled no) {
    return each([](V t, V x, V y) { return if_nonzero(t, x, y); }, test, yes, no);
  }
  friend FUSEDOPTIM_SIMD Unrolled if_positive(Unrolled test, Unrolled yes, Unrolled no) {
    return each([](V t, V x, V y) { return if_positive(t, x, y); }, test, yes, no);
  }
  friend FUSEDOPTIM_SIMD Unrolled min(Unrolled a, Unrolled b) {
    return each([](V x, V y) { return min(x, y); }, a, b);
  }
  friend FUSEDOPTIM_SIMD Unrolled abs(Unrolled a) {
    return each([](V x) { return abs(x); }, a);
  }
  friend FUSEDOPTIM_SIMD Unrolled max(Unrolled a, Unrolled b) {
    return each([](V x, V y) { return max(x, y); }, a, b);
  }
};

// ---- how many, and where they lie ---------------------------------------------------------------------------------
// Two where that was measured to be faster: of three, and of most with the 16 registers of AVX2, some wait in memory.
#if defined(__AVX512F__)
template <class S>
constexpr int kUnroll = 2;
#else
template <class S>
constexpr int kUnroll = 1;
#if defined(__AVX2__)
template <>
constexpr int kUnroll<BFloat16> = 2;
#endif
#endif

// With fp32 the divider is what an update in the cache waits for longest; 16 bits keep the other units busy with
// conversions, and more so with the multiplications that spare it.
template <class S>
constexpr bool kSparesDivider = sizeof(S) >= 4;

template <class S>
using UnrolledOf = Unrolled<Arithmetic<S>, kUnroll<S>, kSparesDivider<S>>;

template <class S>
FUSEDOPTIM_SIMD void load_into(Vec<Arithmetic<S>>& v, const S* from) {
  v = load(from);
}
template <class T, int count, bool spares_divider, class S>
FUSEDOPTIM_SIMD void load_into(Unrolled<T, count, spares_divider>& vectors, const S* from) {
  for (auto& part : vectors.parts) {
    part = load(from);
    from += part.kLanes;
  }
}
template <class T, int count, bool spares_divider, class S>
FUSEDOPTIM_SIMD void store(S* to, const Unrolled<T, count, spares_divider>& vectors) {
  for (const auto& part : vectors.parts) {
    store(to, part);
    to += part.kLanes;
  }
}

// Of two vectors of bf16, one has the elements at even places and the other those at odd ones: a rule does not ask
// which is where, and nothing has to change its lane.
FUSEDOPTIM_SIMD void load_into(Unrolled<float, 2, kSparesDivider<BFloat16>>& vectors, const BFloat16* from) {
  FloatBits pairs;
  std::memcpy(&pairs, from, sizeof(pairs));
  vectors.parts[0] = FloatVec((FloatVec::R)(pairs << 16));
  vectors.parts[1] = FloatVec((FloatVec::R)(pairs & 0xffff0000));
}
FUSEDOPTIM_SIMD void store(BFloat16* to, const Unrolled<float, 2, kSparesDivider<BFloat16>>& vectors) {
  const FloatBits pairs = nearest_bf16(vectors.parts[0]) >> 16 | (nearest_bf16(vectors.parts[1]) & 0xffff0000);
  std::memcpy(to, &pairs, sizeof(pairs));
}

}  // namespace fusedoptim::FUSEDOPTIM_ISA
