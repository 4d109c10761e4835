// What the kernels of the norm are given: plain memory, laid out alike on host and device.
#pragma once

#include "core/sum.h"
#include "cuda/launch.h"

namespace fusedoptim::cuda {

constexpr int kUnitsPerChunk = kChunk / int(kSumUnit);  // that a block adds at once, a thread a lane
static_assert(kUnitsPerChunk * kSumUnit == kChunk && kUnitsPerChunk * kSumLanes == kThreads);

// One gradient.
struct NormRow {
  void* data;
  int64_t count;       // elements
  int64_t first_unit;  // in `unit_sums`
  int32_t dtype;       // a DType other than f64
  int32_t layout;  // kNoLayout: its elements lie in their order; else where ndim, sizes and strides begin in `layouts`
  int64_t is_dense;  // in whatever order, its elements fill one range of memory
};

// Whether a step may be taken, as a number on the device. Null for what is not asked for.
struct Verdict {
  const float* found_before;  // not 0: it may not, whatever the norm
  float* found;               // becomes 1 where it may not, else 0
  int64_t* skipped;           // raised where the norm alone forbids it
};

// The parameter of the kernel that measures.
struct NormLaunch {
  const NormRow* rows;
  const Chunk* chunks;
  const int64_t* layouts;
  unsigned* tickets;        // one for each row and one for all of them; 0 before and after each launch
  double* unit_sums;        // of each kSumUnit elements of each row
  double* row_sums;         // of the rows that are not empty
  double* norm;             // the result
  void* rounded;            // the result as a number of type `rounded_as`
  const float* grad_scale;  // null, or: what each element is divided by first, and rounded as it is stored
  Verdict verdict;
  int32_t chunk_count, row_count, filled_count;  // chunks, rows, rows that are not empty
  int32_t rounded_as;
  bool store;  // the quotients
};

// The parameter of the kernel that multiplies gradients by clip_coefficient(norm, max_norm).
struct ClipLaunch {
  const NormRow* rows;
  const Chunk* chunks;
  const int64_t* layouts;
  const double* norm;
  double max_norm;
  int32_t chunk_count;
};

// The parameter of the kernel that judges by a norm that was measured before.
struct JudgeLaunch {
  const double* norm;
  Verdict verdict;
};

KernelHandle norm_kernel();
KernelHandle clip_kernel();
KernelHandle judge_kernel();

}  // namespace fusedoptim::cuda
