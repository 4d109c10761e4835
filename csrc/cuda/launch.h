// What a kernel is given: plain memory, laid out alike on host and device.
#pragma once

#include <cstdint>

#include "core/task.h"

namespace fusedoptim::cuda {

constexpr int kThreads = 256;           // of a block
constexpr int kWarp = 32;               // of a warp
constexpr int kBlocksPerProcessor = 2;  // that registers must suffice for: with fewer registers ptxas spills
constexpr int kChunk = 8192;            // elements that a block takes at once
constexpr int kZeroChunk = 65536;       // bytes that a block zeroes at once
constexpr int kNoLayout = -1;

// How an operand is stored, its dtype and its coding in one: cuda/storage.cuh reads and writes each.
enum class Format : int32_t { f64, f32, bf16, f16, stochastic, magnitude, sign };

constexpr Format format_of(DType dtype, Coding coding) {
  return coding == Coding::stochastic  ? Format::stochastic
         : coding == Coding::magnitude ? Format::magnitude
         : coding == Coding::sign      ? Format::sign
                                       : Format(dtype);
}
constexpr bool is_random(Format format) { return format == Format::stochastic || format == Format::magnitude; }

// Where the step count of a parameter lies, and the rule's numbers beside it; at null: on the host.
struct StepNumbers {
  void* step;
  void* others[kMaxNumbers];
  int64_t are_double;  // a bit for each, the step first
};

// One parameter. Operands are param, grad, the states, then the average and the companion if there are any.
struct Row {
  void* operands[kMaxOperands];
  float* scales[kMaxStates];  // of states in 8 bits
  int64_t columns;            // of their blocks; 0: there are none
  int64_t count;              // elements
  StepNumbers numbers;        // its step count and the rule's other numbers, if they lie on the device
  uint64_t seed;              // of random bits, as are the next two: core/philox.h
  int64_t first_element;
  uint32_t parameter;
  int64_t layout;  // kNoLayout: all operands are contiguous in one order; else where its Layout begins in `layouts`:
};  // ndim, the sizes, and a row of ndim element strides for each operand

struct Chunk {
  int32_t row, index;  // elements index * kChunk and on; of a row with blocks of 8 bits, so many blocks as these are
};

// The parameter of a step kernel. The table of rows, chunks, counts and layouts stays on the device between steps;
// what changes from step to step is here.
struct StepLaunch {
  const Row* rows;
  const Chunk* chunks;
  const StepNumbers* counts;  // to be advanced, each listed once however many rows read it
  const int64_t* layouts;
  unsigned* ticket;         // 0 before and after each launch
  const float* found_inf;   // null, or: the step is taken only if it is 0
  const float* grad_scale;  // null, or: grad is divided by it first, and stored
  const double* norm;       // null, or: of the gradients, which are clipped to `max_norm`
  double max_norm;
  int32_t chunk_count, counts_count;
  double factor;  // grad is multiplied by it and by the coefficient that clips, and rounded as grad is stored
  double average_weight;
  bool zero_grad;
  Format formats[kMaxOperands];  // of the operands
  int32_t sizes[kMaxOperands];   // of their elements, in bytes
  Companion companion;
  bool averages, average_is_new;  // as a task's: the average is the operand behind the rule's
  bool computes_constants;        // on the device: `rule` holds the options and not the constants
  int32_t number_count;
  double step;  // the step count, after its increment, of rows that have none on the device
  DeviceNumber numbers[kMaxDeviceNumbers];
  alignas(16) unsigned char rule[kMaxRuleBytes];
};

struct ZeroSpan {
  char* data;
  int64_t bytes;
};

// The parameter of the kernel that zeroes memory.
struct ZeroLaunch {
  const ZeroSpan* spans;
  const Chunk* chunks;  // `row` numbers the spans; bytes index * kZeroChunk and on
  int32_t chunk_count;
};

// The host's handles of the kernels, for cudaLaunchKernel; null for a variant that the rule does not have. Step kernels
// have their arithmetic in float32 or in float64; how operands are stored they are told in the launch.
using KernelHandle = const void*;
KernelHandle step_kernel(int rule, int variant, bool in_double);
KernelHandle zero_kernel();

}  // namespace fusedoptim::cuda
