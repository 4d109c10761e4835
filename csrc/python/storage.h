// How the tensors of a parameter are stored: what its group asks for, and what is there.
#pragma once

#include "core/task.h"
#include "python/rules.h"

namespace fusedoptim::python {

// Of a group.
struct StorageSettings {
  Companion companion = Companion::none;  // of parameters of 16 bits
  bool stochastic = false;                // parameters in bf16 are rounded so
  unsigned stochastic_states = 0;         // a bit for each state that is rounded so where it is in bf16
  uint64_t seed = 0;
  bool is_any = false;

  Companion companion_of(DType param) const { return size_of(param) == 2 ? companion : Companion::none; }
};

// The tensors that are a parameter's own, in the order in which they are found in its state: those of its shape, which
// are the rule's states, its average and its companion; then its step and the rule's other numbers; then the scales of
// states in 8 bits.
struct Owned {
  uint8_t kept = 0;  // a bit for each state of the rule that is there
  bool averages = false, counts = false;
  Companion companion = Companion::none;
  uint8_t numbers = 0;  // of the rule, beside the step
  uint8_t states = uint8_t(count_of(kept));
  uint8_t tensors = uint8_t(states + averages + (companion != Companion::none));  // of its shape
  uint8_t named = uint8_t(tensors + counts + numbers);                            // all but scales

  // The rule's number of the state at a place.
  int state(int place) const {
    int number = 0;
    for (unsigned bits = kept;; bits >>= 1, ++number) {
      if ((bits & 1) != 0 && place-- == 0) return number;
    }
  }
  int average_at() const { return states; }
  int companion_at() const { return states + averages; }
  int step_at() const { return tensors; }
  int number_at(int i) const { return tensors + counts + i; }
  bool operator==(const Owned& other) const {
    return kept == other.kept && averages == other.averages && counts == other.counts && companion == other.companion;
  }
};
constexpr int kMaxNamed = kMaxOwned + 1 + kMaxNumbers, kMaxEntries = kMaxNamed + kMaxStates;

constexpr const char* name_of(Companion companion) {
  constexpr const char* kNames[kCompanions] = {"", "master_param", "master_param", "kahan_comp"};
  return kNames[int(companion)];
}

// Why the kernels cannot take operands of these dtypes, or null.
const char* check_dtypes(const DType* dtypes, const Owned& owned);

// Says in a task, which has its dtypes, how each operand is stored. Returns whether elements must be numbered in the
// order of rows, since random bits or scales depend on their number.
bool describe_storage(Task& task, const Owned& owned, const StorageSettings& settings, const RuleEntry& rule);

// The blocks of 8 bits of a tensor of this shape; how many there are is what `blocks_of(...)` numbers its end.
Blocks blocks_of(int ndim, const int64_t* sizes, int64_t count);

}  // namespace fusedoptim::python
