// Launches of the kernels that measure gradients, judge and clip them.
#pragma once

#include <cstdint>

namespace cuda_on_cpu {

struct NormTotals {
  int64_t launches = 0, elements = 0;
};

// Sizes around lanes, units and chunks, of every storage type, alignment and layout, in one launch; with and without
// division, in grids from one block to more blocks than chunks; against what the CPU driver finds. Throws Mismatch or
// Fault. `brief` and `guard` as for steps.
NormTotals check_norm(bool brief, int guard, uint64_t seed);

}  // namespace cuda_on_cpu
