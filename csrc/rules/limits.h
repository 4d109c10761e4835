// The most that any rule has, which decides how large a task is.
#pragma once

namespace fusedoptim {

constexpr int kMaxStates = 3;       // state tensors that a rule keeps per parameter
constexpr int kMaxVariants = 10;    // variants of a rule
constexpr int kMaxRuleBytes = 128;  // a rule's constants, or the options that they are computed from

}  // namespace fusedoptim
