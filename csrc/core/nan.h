// The NaN that arithmetic may meet.
#pragma once

#include <cmath>

namespace fusedoptim {

// x, and for any NaN the usual one, as whatever the kernels compute with must be: see nearest_bf16.
inline double canonicalize_nan(double x) { return x == x ? x : NAN; }

}  // namespace fusedoptim
