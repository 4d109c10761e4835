// The sum of squares, in double, in the order of core/sum.h.
#pragma once

#include <algorithm>

#include "core/sum.h"
#include "cpu/instruction_set.h"
#include "cpu/simd/unrolled.h"

namespace fusedoptim::FUSEDOPTIM_ISA {

constexpr int kDoubles = Vec<double>::kLanes;
using Doubles = Raw<double, kDoubles>;

// Compilers convert half a vector at a time for __builtin_convertvector.
FUSEDOPTIM_SIMD Doubles as_doubles(Raw<float, kDoubles> x) {
#if defined(__AVX512F__)
  return Doubles(_mm512_cvtps_pd(x));
#elif defined(__AVX2__)
  return Doubles(_mm256_cvtps_pd(x));
#else
  return __builtin_convertvector(x, Doubles);
#endif
}

FUSEDOPTIM_SIMD Doubles widened(const double* from) { return load(from).raw; }
FUSEDOPTIM_SIMD Doubles widened(const float* from) {
  Raw<float, kDoubles> narrow;
  std::memcpy(&narrow, from, sizeof(narrow));
  return as_doubles(narrow);
}
FUSEDOPTIM_SIMD Doubles widened(const BFloat16* from) {
#if defined(__AVX512F__)
  const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return Doubles(_mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))));
#elif defined(__AVX2__)
  const __m128i bits = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  return Doubles(_mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(bits, 16))));
#else
  Raw<uint16_t, kDoubles> bits;
  std::memcpy(&bits, from, sizeof(bits));
  return as_doubles((Raw<float, kDoubles>)(__builtin_convertvector(bits, Raw<uint32_t, kDoubles>) << 16));
#endif
}
FUSEDOPTIM_SIMD Doubles widened(const Half* from) {
#if defined(__AVX512F__)
  return as_doubles(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__AVX2__)
  return as_doubles(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  Doubles wide;
  for (int i = 0; i < kDoubles; ++i) wide[i] = widen(from[i].bits);
  return wide;
#endif
}

// The square of a float is exact in double, so that fused or not its sum has the same bits; that of a double is
// rounded by itself.
template <class S>
FUSEDOPTIM_SIMD Doubles plus_square(Doubles sum, Doubles x) {
#if defined(__AVX2__)
  if constexpr (sizeof(S) < 8) return Doubles(raw_fma(x, x, sum));
#endif
  return sum + x * x;
}

// The sums of each lane, of several units whose rows are read in turn.
template <int units>
struct Lanes {
  static constexpr int kVectors = kSumLanes / kDoubles;
  Doubles sums[units][kVectors] = {};

  // Adds rows of kSumLanes elements, one to each lane. The sums of one unit fill 16 registers of AVX-512. Those of more
  // units, or in smaller registers, stay in the first-level cache, which costs no more than widening does.
  template <bool fetches, class S, class Square>
  FUSEDOPTIM_SIMD void add(const S* const* from, int64_t rows, const Square& square) {
    for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 1
      for (int u = 0; u < units; ++u) {
        const S* const at = from[u] + row * kSumLanes;
        for (int line = 0; fetches && line < kSumLanes * int(sizeof(S)) / kLine; ++line)
          __builtin_prefetch(reinterpret_cast<const char*>(at) + kAhead + line * kLine);
#if defined(__AVX512F__)
#pragma GCC unroll 16
#endif
        for (int k = 0; k < kVectors; ++k) sums[u][k] = square(sums[u][k], at + k * kDoubles);
      }
    }
  }

  FUSEDOPTIM_SIMD double folded(int unit) const {
    double all[kSumLanes];
    std::memcpy(all, sums[unit], sizeof(all));
    return fold_lanes(all, kSumLanes);
  }
};

// The sum of fewer elements than a row, of which each lane gets at most one.
template <class S>
FUSEDOPTIM_SIMD double few_squares(const S* from, int count) {
  double lanes[kSumLanes + kDoubles];
  int done = 0;
  const auto square = [&](const S* at) {
    const Doubles sum = plus_square<S>(Doubles{}, widened(at));
    std::memcpy(lanes + done, &sum, sizeof(sum));
  };
  for (; done + kDoubles <= count; done += kDoubles) square(from + done);
  if (done < count) {
    S part[kDoubles] = {};
    std::memcpy(part, from + done, (count - done) * sizeof(S));
    square(part);
    done += kDoubles;
  }
  int width = kSumLanes;
  while (width / 2 >= count && width > 1) width /= 2;
  for (; done < width; ++done) lanes[done] = 0;
  return fold_lanes(lanes, count);
}

template <class S>
double squares(const void* grad, int64_t count) {
  const S* from = static_cast<const S*>(grad);
  if (count < kSumLanes) return few_squares(from, int(count));
  const int64_t rows = count / kSumLanes, rest = count % kSumLanes;
  const auto square = [](Doubles sum, const S* at) { return plus_square<S>(sum, widened(at)); };
  Lanes<1> lanes;
  lanes.add<true>(&from, rows, square);
  if (rest > 0) {
    S row[kSumLanes];
    std::memcpy(row, from + rows * kSumLanes, rest * sizeof(S));
    std::memset(row + rest, 0, (kSumLanes - rest) * sizeof(S));  // zeros change no sum
    const S* const last = row;
    lanes.add<false>(&last, 1, square);
  }
  return lanes.folded(0);
}

// The sums of kAbreast whole units. `factor` is 1 but for float32, whose elements are first multiplied by it and
// rounded.
template <class S>
void squares_abreast(const void* const* grads, double factor, double* sums) {
  const S* from[cpu::kAbreast];
  std::copy(grads, grads + cpu::kAbreast, reinterpret_cast<const void**>(from));
  Lanes<cpu::kAbreast> lanes;
  if constexpr (sizeof(S) == 4) {
    const Raw<float, kDoubles> factors = Raw<float, kDoubles>{} + float(factor);
    lanes.add<true>(from, kSumUnit / kSumLanes, [&](Doubles sum, const S* at) {
      Raw<float, kDoubles> narrow;
      std::memcpy(&narrow, at, sizeof(narrow));
      return plus_square<S>(sum, as_doubles(narrow * factors));
    });
  } else {
    lanes.add<true>(from, kSumUnit / kSumLanes,
                    [](Doubles sum, const S* at) { return plus_square<S>(sum, widened(at)); });
  }
  for (int u = 0; u < cpu::kAbreast; ++u) sums[u] = lanes.folded(u);
}

}  // namespace fusedoptim::FUSEDOPTIM_ISA
