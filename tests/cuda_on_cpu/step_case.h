// One launch of a step kernel, and whether it leaves in memory what the CPU driver leaves there.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/task.h"
#include "numbers.h"

namespace cuda_on_cpu {

// A kernel did not do what it should.
struct Mismatch : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where the elements of a row lie that is not contiguous. Empty strides: in row-major order, times two.
struct Strides {
  std::vector<int64_t> sizes;
  std::vector<std::vector<int64_t>> of_operand;  // as many as there are; operand k has number k modulo that
};

struct RowCase {
  int64_t count;                     // elements
  unsigned misaligned = 0;           // bit k: operand k begins one element past a multiple of 16 bytes
  const Strides* strides = nullptr;  // null: contiguous
  double step = 0;                   // before the step
  bool shares_step = false;          // with the row before: one step count for both
  int first_chunk = 0;               // the row is the end of a larger one, of which these chunks are not launched
  int64_t columns = 0;               // of blocks of 8 bits, in a launch that has such
  int64_t first_element = 0;         // the place of the first in the whole tensor
};

// How the operands of a launch are stored, where that is not simply in its dtype.
struct Mixture {
  struct Stored {
    DType dtype;
    fusedoptim::Coding coding = fusedoptim::Coding::nearest;
  };
  std::vector<Stored> operands;  // as in a task: the rule's, the average, the companion
  fusedoptim::Companion companion = fusedoptim::Companion::none;
  bool plain = false;  // no numbers that are not finite: one of these is that of its whole block of 8 bits
};

// Where the constants are folded from the options, and where step counts lie.
enum class Fold {
  kOnHost,            // both on the host: all rows take the step of the first
  kOnHostCounting,    // step counts on the device, which the kernel only raises
  kOnDevice,          // both on the device, each row with its own step count; these are float and double in turn
  kOnDeviceHostStep,  // step counts on the host: all rows take the step of the first
};

struct StepCase {
  int rule, variant;
  DType dtype;
  bool maximize = false, zero_grad = false;
  double clip = 1;
  bool clip_on_device = false;  // the kernel finds the coefficient from a norm
  bool averages = false, average_is_new = false;
  std::optional<float> grad_scale, found_inf;
  Fold fold = Fold::kOnHost;
  int device_numbers = 0;  // so many options lie on the device, float and double in turn, if constants are folded there
  std::optional<Mixture> mixture;
  unsigned grid = 1;
  std::vector<RowCase> rows;
  uint64_t seed = 0;  // of all numbers
};

int operands_of(int rule, int variant);
int64_t chunks_of(const std::vector<RowCase>& rows);
std::string describe(const StepCase& step);

// Throws Mismatch or Fault; returns how many elements were compared. `guard`: so many elements behind each operand must
// stay as they are; none where AddressSanitizer watches the end of the memory.
int64_t check(const StepCase& step, int guard);

}  // namespace cuda_on_cpu
