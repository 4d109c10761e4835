// One parameter's share of a step, as a driver sees it: plain memory, no tensor, no Python.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "rules/all.h"

namespace fusedoptim {

constexpr int kMaxOwned = kMaxStates + 1;    // tensors that are a parameter's own: the rule's states, and its average
constexpr int kMaxOperands = 2 + kMaxOwned;  // param, grad, and those
constexpr int kMaxDims = 64;

// The layout of operands that are not all contiguous in one order. `strides` holds one row of `ndim` element
// strides per operand. Elements are numbered in row-major order of `sizes`.
struct Layout {
  int ndim;
  const int64_t* sizes;
  const int64_t* strides;
};

constexpr int kMaxRuleBytes = 128;    // a rule's constants, or the options that they are computed from
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
  int rule = 0;  // index in AllRules
  int variant = 0;
  DType dtype = DType::f32;
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
  // The last operand is an average of param, which moves by `average_weight` once param is written, or becomes it.
  bool averages = false, average_is_new = false;
  double average_weight = 0;
  int device = kHost;  // or the number of a CUDA device, on which everything below may lie
  // Not null: the constants are computed on the device from these; `constants` is null.
  const DeviceOptions* device_options = nullptr;
  DeviceNumber step{};   // the count before the step, to be raised there; at null: it lies on the host
  double next_step = 1;  // the host's count after the step
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
