// The sum of squares, in double, in the order of core/sum.h.
#pragma once

#include "core/sum.h"
#include "cpu/pack.h"

namespace fusedoptim::FUSEDOPTIM_ISA {

constexpr int kDoubles = Vec<double>::kLanes;
using Doubles = Raw<double, kDoubles>;

// The compiler's own conversion goes by halves of a vector.
FUSEDOPTIM_SIMD Doubles as_doubles(Raw<float, kDoubles> x) {
#if defined(__AVX512F__)
  return Doubles(_mm512_cvtps_pd(x));
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
  Raw<uint16_t, kDoubles> bits;
  std::memcpy(&bits, from, sizeof(bits));
  return as_doubles((Raw<float, kDoubles>)(__builtin_convertvector(bits, Raw<uint32_t, kDoubles>) << 16));
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

struct Lanes {
  static constexpr int kVectors = kSumLanes / kDoubles;
  Doubles sums[kVectors];

  // Adds rows of kSumLanes elements, one to each lane. With AVX-512 the lanes are 16 registers; with fewer registers
  // they stay in the first-level cache, which costs no more than widening does.
  template <bool fetches, class S>
  FUSEDOPTIM_SIMD void add(const S* from, int64_t rows) {
    for (; rows > 0; --rows, from += kSumLanes) {
      for (int line = 0; fetches && line < kSumLanes * int(sizeof(S)) / kLine; ++line)
        __builtin_prefetch(reinterpret_cast<const char*>(from) + kAhead + line * kLine);
#if defined(__AVX512F__)
#pragma GCC unroll 16
#endif
      for (int k = 0; k < kVectors; ++k) sums[k] = plus_square<S>(sums[k], widened(from + k * kDoubles));
    }
  }
};

// Of less than a row: each lane gets one.
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
  Lanes lanes;
  for (Doubles& sum : lanes.sums) sum = Doubles{};
  lanes.add<true>(from, rows);
  if (rest > 0) {
    S row[kSumLanes];
    std::memcpy(row, from + rows * kSumLanes, rest * sizeof(S));
    std::memset(row + rest, 0, (kSumLanes - rest) * sizeof(S));  // zeros change no sum
    lanes.add<false>(row, 1);
  }
  double all[kSumLanes];
  std::memcpy(all, lanes.sums, sizeof(all));
  return fold_lanes(all, count);
}

}  // namespace fusedoptim::FUSEDOPTIM_ISA
