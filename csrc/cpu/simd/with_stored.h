// From how an operand is stored, as a task says it, to the struct for that.
#pragma once

#include "cpu/simd/eight_bits.h"

namespace fusedoptim::FUSEDOPTIM_ISA {

// Calls `work` with the struct for a number, which does not change while a loop runs: the branch is predicted.
template <class Work>
FUSEDOPTIM_SIMD void with_number(Stored stored, Work work) {
  switch (stored) {
    case Stored::f32:
      return work(Plain<float>());
    case Stored::bf16:
      return work(Plain<BFloat16>());
    default:
      return work(Plain<Half>());
  }
}
template <class Work>
FUSEDOPTIM_SIMD void with_state(Stored stored, Work work) {
  switch (stored) {
    case Stored::stochastic:
      return work(Stochastic());
    case Stored::magnitude:
      return work(EightBits<Coding::magnitude>());
    case Stored::sign:
      return work(EightBits<Coding::sign>());
    default:
      return with_number(stored, work);
  }
}
template <class Work>
FUSEDOPTIM_SIMD void with_param(Stored stored, Work work) {
  switch (stored) {
    case Stored::stochastic:
      return work(Stochastic());
    case Stored::master_bf16:
      return work(Master<BFloat16>());
    case Stored::master_f16:
      return work(Master<Half>());
    case Stored::remainder:
      return work(Remainder());
    case Stored::compensated_bf16:
      return work(Compensated<BFloat16>());
    case Stored::compensated_f16:
      return work(Compensated<Half>());
    default:
      return with_number(stored, work);
  }
}

}  // namespace fusedoptim::FUSEDOPTIM_ISA
