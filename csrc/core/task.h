// One parameter's share of a step, as a driver sees it: plain memory, no tensor, no Python.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/storage.h"
#include "rules/limits.h"

namespace fusedoptim {

// Tensors that are a parameter's own and have its shape: the rule's states, its average and its companion.
constexpr int kMaxOwned = kMaxStates + 2;
constexpr int kMaxOperands = 2 + kMaxOwned;  // param, grad, and those
constexpr int kMaxDims = 64;

// The layout of operands that are not all contiguous in one order. `strides` holds one row of `ndim` element
// strides per operand. Elements are numbered in row-major order of `sizes`.
struct Layout {
  int ndim;
  const int64_t* sizes;
  const int64_t* strides;
};

constexpr int kMaxDeviceNumbers = 4;  // options of one group that lie on a device

// A number that lies on the task's device, as the learning rate may and the step count, and is read there.
struct DeviceNumber {
  const void* at;
  int32_t is_double;
  int32_t option;  // which double of the rule's options it is
};

// The options of a group some of whose numbers lie on a device.
struct DeviceOptions {
  const void* options;  // the rule's Options; what lies on the device is not in it
  DeviceNumber numbers[kMaxDeviceNumbers];
  int number_count;
};

constexpr int kHost = -1;

struct Task {
  int rule = 0;  // its number, in the order of rules/all.h
  int variant = 0;
  DType dtype = DType::f32;  // of param, and of all operands unless `mixed`
  // Whether operands differ in dtype, or are not simply stored in theirs. Then the arithmetic is in float32, and what
  // follows counts.
  bool mixed = false;
  DType dtypes[kMaxOperands];
  Coding codings[kMaxOperands];           // of param and the states
  float* scales[kMaxOperands];            // of states in 8 bits, one for each block
  Blocks blocks{};                        // of these, or none
  Companion companion = Companion::none;  // the last operand, if there is one
  uint64_t seed = 0;                      // of random bits, as is the number of the parameter: core/philox.h
  uint32_t parameter = 0;
  int64_t first_element = 0;  // the place of the first element in the whole tensor, for the same
  int operand_count = 0;
  const void* constants = nullptr;  // kMaxRuleBytes with an instance of the rule for the dtype's arithmetic type
  void* operands[kMaxOperands] = {};
  int64_t count = 0;               // elements
  const Layout* layout = nullptr;  // null: every operand is contiguous in one common order of elements
  // grad is multiplied by it, and rounded as grad is stored: 1, -1 to maximize, or either times a coefficient that
  // clips. What is stored stays as it is.
  double factor = 1;
  // Not null: the norm of the gradients, on the device, and `factor` is multiplied by what clips these to `max_norm`.
  const double* norm = nullptr;
  double max_norm = 0;
  // The operand behind the rule's is an average of param, which moves by `average_weight` once param is written, or
  // becomes it.
  bool averages = false, average_is_new = false;
  double average_weight = 0;
  int device = kHost;  // or the number of a CUDA device, on which everything below may lie
  // Not null: the constants are computed on the device from these; `constants` is null.
  const DeviceOptions* device_options = nullptr;
  DeviceNumber step{};   // the count before the step, to be raised there; at null: it lies on the host
  double next_step = 1;  // the host's count after the step
  DeviceNumber numbers[kMaxNumbers] = {};  // the rule's numbers beside it, as far as it lies on the device

  DType dtype_of(int operand) const { return mixed ? dtypes[operand] : dtype; }
  // How many of `n` elements from `begin` on can be taken at once, so that no block of 8 bits is taken in two parts.
  int64_t cut(int64_t begin, int64_t n) const {
    if (!mixed || blocks.columns == 0 || begin + n >= count) return n;
    return blocks.begin(blocks.of(begin + n)) - begin;
  }
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
