// One parameter's share of a step, as a driver sees it: plain memory, no tensor, no Python.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "rules/all.h"

namespace fusedoptim {

constexpr int kMaxOperands = 2 + kMaxStates;  // param, grad, states
constexpr int kMaxDims = 64;

// Where the elements of operands lie that do not share one dense layout. `strides` holds one row of `ndim` element
// strides per operand. Elements are numbered in row-major order of `sizes`.
struct Layout {
  int ndim;
  const int64_t* sizes;
  const int64_t* strides;
};

struct Task {
  int rule;  // index in AllRules
  int variant;
  DType dtype;
  int operand_count;
  const void* constants;  // an instance of the rule for the dtype's arithmetic type
  void* operands[kMaxOperands];
  int64_t count;         // elements
  const Layout* layout;  // null: every operand is contiguous in one common order of elements
  bool maximize;
};

struct RunOptions {
  int threads = 1;
  bool backwards = false;  // from the last chunk to the first
  bool in_order = false;   // one task after the other, as memory shared between tasks demands
  bool unscale = false;    // divide grad by grad_scale first and store it
  double grad_scale = 1;
  bool zero_grad = false;  // write zeros over grad once it is read
};

}  // namespace fusedoptim
