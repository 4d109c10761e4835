// What a rule is, and the scalar arithmetic that it may use.
//
// A rule is a struct template over its arithmetic type T (float or double). An instance holds the constants of one
// step, computed from the options in double and rounded once to T; calling it updates one element (or one vector of
// elements) held in registers. It knows no loop, no pointer into memory, no storage type, no device. Where an option or
// the step count lies on a CUDA device, the constants are computed there, by the same constructor to the same bits:
// hence `power` for std::pow, and nothing but IEEE operations.
//
//   template <class T> struct Example {
//     struct Options {                                   // as they stand in a param group, by name
//       double lr; bool nesterov;
//       template <class Read> void read(Read&& read) { read("lr", lr, kOnDevice); read("nesterov", nesterov); }
//     };
//     static constexpr const char* kName;                // "example"
//     static constexpr const char* kStates[];            // names in the state dict; `state` has those of the variant
//     static constexpr unsigned kNonNegative;            // a bit for each state that is never negative
//     static constexpr bool kCountsSteps;                // whether the state holds `step`
//     static constexpr int kVariants;                    // choices made at compile time, numbered from 0
//     static int variant(const Options&, bool first);    // `first`: this parameter has no state yet
//     static constexpr unsigned states_of(int variant);  // a bit for each of kStates that this variant uses
//     FUSEDOPTIM_INLINE Example(const Options&, double step);  // `step` after its increment; or of Numbers, see there
//     template <int variant, class V> void operator()(V& param, V grad, V* state) const;
//   };
//
// V is T itself, a SIMD vector of T or several, with the same operators and the functions below; each rounds once, to
// nearest even. What is the same for all elements may be decided by `if`, with a branch that goes one way; between
// elements `if_positive` and `if_nonzero` choose. Gradient scaling, `maximize`, zeroing and `found_inf` belong to the
// driver and do not appear here.
#pragma once

#include <cmath>
#include <cstdint>
#include <iterator>
#include <type_traits>

#include "rules/limits.h"

#if defined(__CUDACC__)
#define FUSEDOPTIM_INLINE __host__ __device__ __forceinline__
#else
#define FUSEDOPTIM_INLINE inline __attribute__((always_inline))
#endif

namespace fusedoptim {

// Says of an option that it may be a tensor on a CUDA device, to be read there; `variant` must not look at it.
struct OnDevice {};
constexpr OnDevice kOnDevice;
// Says of a pair of options that it may hold any numbers; others are at least 0 and less than 1.
struct AnyPair {};
constexpr AnyPair kAnyPair;

FUSEDOPTIM_INLINE float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
FUSEDOPTIM_INLINE double fma(double a, double b, double c) { return ::fma(a, b, c); }
FUSEDOPTIM_INLINE float sqrt(float x) { return ::sqrtf(x); }
FUSEDOPTIM_INLINE double sqrt(double x) { return ::sqrt(x); }
// The larger of the two; NaN if either is NaN.
template <class T>
FUSEDOPTIM_INLINE T max(T a, T b) {
  return ((b > a) | (b != b)) ? b : a;
}

// The smaller of the two; NaN if either is NaN.
template <class T>
FUSEDOPTIM_INLINE T min(T a, T b) {
  return ((b < a) | (b != b)) ? b : a;
}
FUSEDOPTIM_INLINE float abs(float x) { return ::fabsf(x); }
FUSEDOPTIM_INLINE double abs(double x) { return ::fabs(x); }

// test > 0 ? yes : no
template <class T>
FUSEDOPTIM_INLINE T if_positive(T test, T yes, T no) {
  return test > 0 ? yes : no;
}

// test is neither zero nor NaN ? yes : no
template <class T>
FUSEDOPTIM_INLINE T if_nonzero(T test, T yes, T no) {
  return ((test > 0) | (test < 0)) ? yes : no;
}

// 1, -1, or 0 for zero and NaN.
template <class V>
FUSEDOPTIM_INLINE V sign(V x) {
  return if_positive(x, V(1), if_positive(V(0) - x, V(-1), V(0)));
}

// start + weight (end - start), computed from the nearer end. Everything is rounded to T before it is compared.
template <class T>
struct Lerp {
  T from_end, change_weight;  // from_end: 1, or 0 where `start` is the nearer one

  FUSEDOPTIM_INLINE explicit Lerp(double weight)
      : from_end(T(weight) < T(0.5) ? T(0) : T(1)), change_weight(T(weight) - from_end) {}

  template <class V>
  FUSEDOPTIM_INLINE V operator()(V start, V end) const {
    return fma(V(change_weight), end - start, if_nonzero(V(from_end), end, start));
  }
};

// What the constants of a parameter are computed from, beside the options. A rule that keeps numbers of its own in the
// state, beside `step`, names them, says what a step makes of them, and takes these in place of the step count:
//
//   static constexpr const char* kNumbers[];                 // "mu_product"
//   static void advance(const Options&, Numbers&);           // computes `after`, which is then rounded as it is stored
//   Example(const Options&, const Numbers&);
struct Numbers {
  double step = 1;  // after its increment
  double before[kMaxNumbers] = {}, after[kMaxNumbers] = {};

  bool same_before(const Numbers& other) const {
    bool same = step == other.step;
    for (int i = 0; i < kMaxNumbers; ++i) same = same && before[i] == other.before[i];
    return same;
  }
};

template <class R, class = void>
struct NumbersOf {
  static constexpr int kCount = 0;
  static constexpr const char* const* kNames = nullptr;
  FUSEDOPTIM_INLINE static void advance(const typename R::Options&, Numbers&) {}
  FUSEDOPTIM_INLINE static R make(const typename R::Options& o, const Numbers& numbers) { return R(o, numbers.step); }
};
template <class R>
struct NumbersOf<R, std::void_t<decltype(R::kNumbers)>> {
  static constexpr int kCount = int(std::size(R::kNumbers));
  static constexpr const char* const* kNames = R::kNumbers;
  static_assert(kCount <= kMaxNumbers, "raise kMaxNumbers in rules/limits.h");
  FUSEDOPTIM_INLINE static void advance(const typename R::Options& o, Numbers& numbers) { R::advance(o, numbers); }
  FUSEDOPTIM_INLINE static R make(const typename R::Options& o, const Numbers& numbers) { return R(o, numbers); }
};

// A rule whose options are in part written by the step, as a running sum of the group, names these and says what they
// become, and what counts as its step:
//
//   static constexpr const char* kGroupNumbers[];               // "weight_sum"
//   static void advance_group(const Options&, double* numbers);
//   static double step_of(const Options&);                      // after its increment
template <class R, class = void>
struct GroupNumbersOf {
  static constexpr int kCount = 0;
  static constexpr const char* const* kNames = nullptr;
  static void advance(const typename R::Options&, double*) {}
  static double step(const typename R::Options&) { return 1; }
};
template <class R>
struct GroupNumbersOf<R, std::void_t<decltype(R::kGroupNumbers)>> {
  static constexpr int kCount = int(std::size(R::kGroupNumbers));
  static constexpr const char* const* kNames = R::kGroupNumbers;
  static_assert(kCount <= kMaxGroupNumbers, "raise kMaxGroupNumbers in rules/limits.h");
  static void advance(const typename R::Options& o, double* numbers) { R::advance_group(o, numbers); }
  static double step(const typename R::Options& o) { return R::step_of(o); }
};

// How many states that is.
constexpr int count_of(unsigned states) { return states == 0 ? 0 : int(states & 1) + count_of(states >> 1); }

// A sum of two doubles, of which the second is what rounding left of the first.
struct DoublePair {
  double high, low;

  FUSEDOPTIM_INLINE DoublePair(double high, double low) : high(high + low), low((high - this->high) + low) {}
  FUSEDOPTIM_INLINE DoublePair operator*(const DoublePair& other) const {
    const double product = high * other.high;
    if (product == INFINITY) return {product, 0};
    return {product, fma(high, other.high, -product) + fma(high, other.low, low * other.high)};
  }
};

FUSEDOPTIM_INLINE DoublePair sqrt(const DoublePair& x) {
  const double root = sqrt(x.high);
  if (root == 0) return {root, 0};
  return {root, (fma(-root, root, x.high) + x.low) / (2 * root)};
}

// base^exponent, rounded once to nearest even but for fewer than one exponent in 2^20: by squaring, and for a fraction
// by square roots, in pairs of doubles whose sum is the number (T. J. Dekker, "A floating-point technique for extending
// the available precision", 1971). Libraries' pow differ in the last bit, and no two devices share one. base is at
// least 0; a negative one, or a negative exponent, gives NaN.
FUSEDOPTIM_INLINE double power(double base, double exponent) {
  if (!(exponent >= 0) || base < 0) return NAN;
  if (base == 0) return exponent == 0 ? 1 : 0;
  DoublePair result(1, 0), square(base, 0);  // base^(2^i)
  uint64_t whole = exponent < 0x1p63 ? uint64_t(exponent) : uint64_t(1) << 63;
  double fraction = exponent < 0x1p52 ? exponent - double(whole) : 0;
  for (;; whole >>= 1) {
    if (whole & 1) result = result * square;
    if (whole <= 1) break;
    square = square * square;
  }
  if (fraction == 0) return result.high;
  int digits = 0;  // of the fraction; what lies behind so many changes nothing
  for (; digits < 120 && fraction != double(uint64_t(fraction)); ++digits) fraction *= 2;
  const DoublePair root = sqrt(DoublePair(base, 0));
  DoublePair part(1, 0);
  for (uint64_t bits = uint64_t(fraction); digits > 0; --digits, bits >>= 1) {
    part = sqrt(part);
    if (bits & 1) part = part * root;
  }
  return (result * part).high;
}

// The logarithm of x to base 2, rounded as `power` is; x lies within 0 and 1. Digit by digit: x squared has the
// logarithm doubled.
FUSEDOPTIM_INLINE double log2_of(double x) {
  if (!(x > 0 && x < 1)) return x == 1 ? 0 : NAN;
  double whole = 0;
  for (; x < 1; --whole) x *= 2;
  DoublePair power_of_x(x, 0);  // within 1 and 2
  double high = 0, low = 0, digit = 0.5;
  for (int i = 0; i < 100; ++i, digit /= 2) {
    power_of_x = power_of_x * power_of_x;
    if (power_of_x.high < 2) continue;
    power_of_x = DoublePair(power_of_x.high / 2, power_of_x.low / 2);
    (i < 50 ? high : low) += digit;
  }
  const double sum = whole + high;
  return sum + (high - (sum - whole) + low);
}

// Division by a number r that is the same for all elements: for float one multiplication and two fmas give the quotient
// as division rounds it, in a fraction of its time. y = RN(1/r), q = RN(a y), then RN(q + RN(a - q r) y), which equals
// RN(a / r) for every mantissa of a and of r: tests/proofs/division.cpp tries all that could differ. (P. Markstein,
// "Computation of elementary functions on the IBM RISC System/6000 processor", 1990, gave the final step.)
// Exponents: a is a square root, so 0, NaN, infinity or within 2^-75 to 2^64, and r within 2^-40 to 1; then nothing
// underflows or overflows on the way. Any other r, and double, take the division.
template <class T>
struct Divisor {
  T value, reciprocal;
  bool by_division;

  FUSEDOPTIM_INLINE explicit Divisor(double r)
      : value(T(r)), reciprocal(T(1) / value), by_division(sizeof(T) > 4 || !(value >= T(0x1p-40) && value <= 1)) {}

  template <class V>
  FUSEDOPTIM_INLINE V divide(V a) const {
    if (by_division) return a / V(value);
    const V q = a * V(reciprocal);
    const V rest = fma(q, V(-value), a);
    return if_nonzero(rest, fma(rest, V(reciprocal), q), q);  // zero keeps its sign, and infinity stays
  }
};

}  // namespace fusedoptim
