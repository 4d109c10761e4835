// An unrolled vector: several that go through a rule at once, since one alone waits for its own results most of the
// time.
#pragma once

#include "cpu/simd/storage.h"

namespace fusedoptim::FUSEDOPTIM_ISA {

#if defined(__AVX512F__)
// The square root of x, rounded as the instruction rounds it, by a step of Newton's from an estimate, and one more from
// the remainder, which is all but exact: tests/proofs/root.cpp tries all mantissas that could differ, for whatever
// estimate within the 2^-14 that the instruction promises. Zeros stay as they are; the root itself is taken where bits
// could be lost to underflow, and for infinity, NaN and negative numbers.
FUSEDOPTIM_SIMD Vec<float> root(Vec<float> x) {
  constexpr int kLeast = (127 - 100) << 23, kInfinite = 255 << 23;  // 2^-100
  const __m512i above = _mm512_sub_epi32(_mm512_castps_si512(x.raw), _mm512_set1_epi32(kLeast));
  const __mmask16 good = _mm512_cmplt_epu32_mask(above, _mm512_set1_epi32(kInfinite - kLeast));
  if (__builtin_expect(good != 0xffff, 0)) {
    if (_mm512_mask_cmp_ps_mask(__mmask16(~good), x.raw, _mm512_setzero_ps(), _CMP_NEQ_UQ) != 0) return sqrt(x);
  }
  const __m512 y = _mm512_maskz_rsqrt14_ps(good, x.raw), half = _mm512_set1_ps(0.5f);
  __m512 g = _mm512_mul_ps(x.raw, y), h = _mm512_mul_ps(y, half);
  const __m512 error = _mm512_fnmadd_ps(g, h, half);
  g = _mm512_fmadd_ps(g, error, g);
  h = _mm512_fmadd_ps(h, error, h);
  const __m512 rest = _mm512_fnmadd_ps(g, g, x.raw);
  return Vec<float>(Raw<float, 16>(_mm512_fmadd_ps(rest, h, g)));
}
#else
FUSEDOPTIM_SIMD Vec<float> root(Vec<float> x) { return sqrt(x); }
#endif
FUSEDOPTIM_SIMD Vec<double> root(Vec<double> x) { return sqrt(x); }

// `spares_divider`: of two square roots one is left to the divider, which takes quotients too, and the other is done by
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
    return each([](V x, V y) { return x / y; }, a, b);
  }
  friend FUSEDOPTIM_SIMD Unrolled fma(Unrolled a, Unrolled b, Unrolled c) {
    return each([](V x, V y, V z) { return fma(x, y, z); }, a, b, c);
  }
  friend FUSEDOPTIM_SIMD Unrolled sqrt(Unrolled a) {
    Unrolled result;
    for (int k = 0; k < count; ++k)
      result.parts[k] = spares_divider && k % 2 == 0 ? root(a.parts[k]) : sqrt(a.parts[k]);
    return result;
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
