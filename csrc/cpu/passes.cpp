// Passes over gradients and averages, which no rule takes part in; compiled once per instruction set.
#include "cpu/instruction_set.h"
#include "cpu/squares.h"

namespace fusedoptim {
namespace FUSEDOPTIM_ISA {

// to = f(from), rounded as it is stored; `to` may be `from`.
template <class S, class F>
FUSEDOPTIM_SIMD void map(const S* from, S* to, int64_t count, F f) {
  constexpr int kLanes = Vec<Arithmetic<S>>::kLanes;
  for (; count >= kLanes; count -= kLanes, from += kLanes, to += kLanes) {
    __builtin_prefetch(reinterpret_cast<const char*>(from) + kAhead);
    store(to, f(load(from)));
  }
  if (count > 0) store_part(to, f(load_part(from, int(count))), int(count));
}

template <class S>
__attribute__((noinline)) void scale(const void* from, void* to, int64_t count, double factor) {
  const Vec<Arithmetic<S>> v{Arithmetic<S>(factor)};
  map(static_cast<const S*>(from), static_cast<S*>(to), count, [v](auto x) { return x * v; });
}

template <class S>
void unscale(const void* from, void* to, int64_t count, double scale_) {
  const double reciprocal = cpu::exact_reciprocal(scale_);
  if (reciprocal != 0) return scale<S>(from, to, count, reciprocal);
  const Vec<Arithmetic<S>> v{Arithmetic<S>(scale_)};
  map(static_cast<const S*>(from), static_cast<S*>(to), count, [v](auto x) { return x / v; });
}

void move_average(const void* param, void* average, int64_t count, double weight) {
  constexpr int kLanes = Vec<double>::kLanes;
  const Lerp<double> lerp(weight);
  const double* from = static_cast<const double*>(param);
  double* to = static_cast<double*>(average);
  for (; count >= kLanes; count -= kLanes, from += kLanes, to += kLanes) store(to, lerp(load(to), load(from)));
  if (count > 0) store_part(to, lerp(load_part(to, int(count)), load_part(from, int(count))), int(count));
}

const cpu::Passes& passes() {
  static constexpr cpu::Passes kPasses{
      {unscale<double>, unscale<float>, unscale<BFloat16>, unscale<Half>},
      {scale<double>, scale<float>, scale<BFloat16>, scale<Half>},
      move_average,
      {squares<double>, squares<float>, squares<BFloat16>, squares<Half>},
      {squares_abreast<double>, squares_abreast<float>, squares_abreast<BFloat16>, squares_abreast<Half>}};
  return kPasses;
}

}  // namespace FUSEDOPTIM_ISA
}  // namespace fusedoptim
