// What is done to all gradients at once: the norm, and the clipping of those that are stored clipped.
#pragma once

#include <vector>

#include "core/task.h"
#include "cpu/instruction_set.h"

namespace fusedoptim::cpu {

struct Grad {
  void* data;
  int64_t count;  // elements
  DType dtype;
  const Layout* layout;  // of this one operand; null: contiguous, in the order of its elements
};

// The sum of the squares of each gradient, in the order of core/sum.h. `grad_scale`: null, or what each element is
// divided by first, and rounded as it is stored.
void sum_squares(const std::vector<Grad>& grads, const double* grad_scale, int threads, const InstructionSet& set,
                 double* sums);

// grad = grad / grad_scale, rounded as it is stored; and the sums of the squares of the quotients, in the same pass.
void unscale(const std::vector<Grad>& grads, double grad_scale, int threads, const InstructionSet& set, double* sums);

// The sum of the squares of the first unit of each, which tells most changes of a gradient for little.
void sum_beginnings(const std::vector<Grad>& grads, int threads, const InstructionSet& set, double* sums);

// grad = grad * factor, rounded as it is stored.
void scale(const std::vector<Grad>& grads, double factor, int threads, const InstructionSet& set);

}  // namespace fusedoptim::cpu
