// The compiled kernels of one instruction set, and the choice of one at run time.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/task.h"

namespace fusedoptim::cpu {

// Applies `rule` (an instance of the rule's struct for the storage's arithmetic type) to `count` elements from
// `begin` on. `operands` are param, grad and the states, contiguous over these elements. grad is multiplied by
// `factor`, and the product rounded to the arithmetic type: 1, -1 to maximize, or either times a coefficient that
// clips.
// Where it averages, one operand more moves towards the new param: average = lerp(average, param, average_weight).
using Kernel = void (*)(const void* rule, void* const* operands, int64_t begin, int64_t count, double factor,
                        double average_weight);

// to = from * factor, or from / factor, rounded as it is stored; `to` may be `from`.
using ScaleKernel = void (*)(const void* from, void* to, int64_t count, double factor);

// 1 / scale if that is exact, as of powers of two, which gradient scales nearly always are; else 0. Multiplying by it
// gives the bits of the division in a fraction of the time.
static inline double exact_reciprocal(double scale) {
  int exponent;
  const bool is_power = std::frexp(scale, &exponent) == 0.5;
  return is_power && exponent > -100 && exponent < 100 ? 1 / scale : 0;
}

// The sum of the squares of up to kSumUnit elements, in the order of core/sum.h.
using SquaresKernel = double (*)(const void* grad, int64_t count);

// The sums of kAbreast whole units at once, a row of each in turn: one stream alone is not read as fast as memory
// gives. `factor`: 1 but for float32, whose elements are first multiplied by it and rounded.
constexpr int kAbreast = 4;
using AbreastKernel = void (*)(const void* const* grads, double factor, double* sums);

// average = lerp(average, param, weight).
using AverageKernel = void (*)(const void* param, void* average, int64_t count, double weight);

// Applies the task's rule to `count` elements whose operands, of several storages, begin at `at`; the first of them is
// number `first` of the task.
using MixedKernel = void (*)(const Task& task, void* const* at, int64_t first, int64_t count, double factor);

struct RuleKernels {
  // Null where the mixed kernel takes it.
  Kernel plain[kMaxVariants][kDTypes];
  Kernel averaging[kMaxVariants];  // float32
  MixedKernel mixed[kMaxVariants];
};

struct Passes {
  ScaleKernel unscale[kDTypes];
  ScaleKernel scale[kDTypes];
  AverageKernel move_average;  // float64, of which there is no mixed kernel
  SquaresKernel squares[kDTypes];
  AbreastKernel squares_abreast[kDTypes];
};

struct InstructionSet {
  const char* name;
  const RuleKernels* const* rules;  // in the order of rules/all.h
  Passes passes;
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
