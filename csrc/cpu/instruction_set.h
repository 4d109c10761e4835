// The compiled kernels of one instruction set, and the choice of one at run time.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "rules/all.h"

namespace fusedoptim::cpu {

// Applies `rule` (an instance of the rule's struct for the storage's arithmetic type) to `count` elements from
// `begin` on. `operands` are param, grad and the states, contiguous over these elements. grad is multiplied by
// `factor`, and the product rounded to the arithmetic type: 1, -1 to maximize, or either times a coefficient that
// clips.
using Kernel = void (*)(const void* rule, void* const* operands, int64_t begin, int64_t count, double factor);

// grad = grad / scale, stored.
using UnscaleKernel = void (*)(void* grad, int64_t begin, int64_t count, double scale);

// to = from * factor, rounded as it is stored.
using ScaleKernel = void (*)(const void* from, void* to, int64_t count, double factor);

// The sum of the squares of up to kSumUnit elements, in the order of core/sum.h.
using SquaresKernel = double (*)(const void* grad, int64_t count);

// average = lerp(average, param, weight).
using AverageKernel = void (*)(const void* param, void* average, int64_t count, double weight);

struct InstructionSet {
  const char* name;
  Kernel kernels[AllRules::kCount][kMaxVariants][kDTypes];
  UnscaleKernel unscale[kDTypes];
  ScaleKernel scale[kDTypes];
  SquaresKernel squares[kDTypes];
  AverageKernel average[kDTypes];
};

// Null where it is not built for this architecture.
const InstructionSet* baseline();
const InstructionSet* avx2();
const InstructionSet* avx512();

// Best first, ending with baseline: those built, and those that this processor also runs.
struct InstructionSets {
  const InstructionSet* sets[3];
  int count;
};
InstructionSets built();
InstructionSets supported();

}  // namespace fusedoptim::cpu
