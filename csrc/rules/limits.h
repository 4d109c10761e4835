// The most that any rule has, which decides how large a task is.
#pragma once

namespace fusedoptim {

constexpr int kMaxStates = 4;        // state tensors that a rule keeps per parameter
constexpr int kMaxNumbers = 2;       // numbers that it keeps per parameter, beside the step count
constexpr int kMaxGroupNumbers = 4;  // numbers of a group that the step writes
constexpr int kMaxVariants = 10;     // variants of a rule
constexpr int kMaxRuleBytes = 128;   // a rule's constants, or the options that they are computed from

}  // namespace fusedoptim
