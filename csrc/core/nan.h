// The NaN that arithmetic may meet.
#pragma once

#include <cmath>

namespace fusedoptim {

// x, or the canonical NaN if x is one: the kernels must meet no other (see nearest_bf16).
inline double canonicalize_nan(double x) { return x == x ? x : NAN; }

}  // namespace fusedoptim
