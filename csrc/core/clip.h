// Clipping by the norm of the gradients, as torch.nn.utils.clip_grad_norm_ has it.
#pragma once

#include "rules/rule.h"

namespace fusedoptim {

// What gradients of this norm are multiplied by so that it is at most `max_norm`; NaN stays NaN.
FUSEDOPTIM_INLINE double clip_coefficient(double norm, double max_norm) {
  const double coefficient = max_norm / (norm + 1e-6);
  return coefficient > 1 ? 1.0 : coefficient;
}

}  // namespace fusedoptim
