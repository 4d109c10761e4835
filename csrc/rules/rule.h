// What a rule is, and the scalar arithmetic that it may use.
//
// A rule is a struct template over its arithmetic type T (float or double). An instance holds the constants of one
// step, folded from the options on the host in double and rounded once to T; calling it updates one element (or one
// vector of elements) held in registers. It knows no loop, no pointer into memory, no storage type, no device.
//
//   template <class T> struct Example {
//     struct Options {                                   // as they stand in a param group, by name
//       double lr; bool nesterov;
//       template <class Read> void read(Read&& read) { read("lr", lr); read("nesterov", nesterov); }
//     };
//     static constexpr const char* kName;                // "example"
//     static constexpr const char* kStates[];            // names in the state dict, in the order of `state`
//     static constexpr bool kCountsSteps;                // whether the state holds `step`
//     static constexpr int kVariants;                    // choices made at compile time, numbered from 0
//     static int variant(const Options&, bool first);    // `first`: this parameter has no state yet
//     static constexpr int states_of(int variant);       // how many of kStates this variant uses
//     Example(const Options&, double step);              // `step` after its increment
//     template <int variant, class V> void operator()(V& param, V grad, V* state) const;
//   };
//
// V is T itself or a SIMD vector of T with the same operators, `fma`, `sqrt` and `max`; each rounds once, to nearest
// even. Gradient scaling, `maximize`, zeroing and `found_inf` belong to the driver and do not appear here.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define FUSEDOPTIM_INLINE __host__ __device__ __forceinline__
#else
#define FUSEDOPTIM_INLINE inline __attribute__((always_inline))
#endif

namespace fusedoptim {

FUSEDOPTIM_INLINE float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
FUSEDOPTIM_INLINE double fma(double a, double b, double c) { return ::fma(a, b, c); }
FUSEDOPTIM_INLINE float sqrt(float x) { return ::sqrtf(x); }
FUSEDOPTIM_INLINE double sqrt(double x) { return ::sqrt(x); }
// The larger of the two; NaN if either is NaN.
template <class T>
FUSEDOPTIM_INLINE T max(T a, T b) {
  return (b > a) | (b != b) ? b : a;
}

}  // namespace fusedoptim
