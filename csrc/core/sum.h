// The order in which a norm adds. It depends on the place of an element alone, so a sum has the same bits in any number
// of threads, on any instruction set and device.
//
// Functions are static: kernels are compiled once per instruction set, and the linker must not keep the copy of one for
// all of them.
#pragma once

#include <cstdint>

namespace fusedoptim {

constexpr int kSumLanes = 128;      // value i is added to lane i % kSumLanes, in order
constexpr int64_t kSumUnit = 4096;  // elements added so; the sums of units likewise, then those of tensors

// Adds the upper half of the lanes to the lower, until one is left. `count`: of values, behind which lanes are 0.
static constexpr double fold_lanes(double* lanes, int64_t count) {
  int width = kSumLanes;
  while (width > 1 && width / 2 >= count) width /= 2;
  for (; width > 1; width /= 2) {
    for (int l = 0; l < width / 2; ++l) lanes[l] += lanes[l + width / 2];
  }
  return lanes[0];
}

static constexpr double ordered_sum(const double* values, int64_t count) {
  if (count == 1) return *values;
  double lanes[kSumLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i % kSumLanes] += values[i];
  return fold_lanes(lanes, count);
}

}  // namespace fusedoptim
