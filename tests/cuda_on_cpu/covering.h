// Which launches are tried.
#pragma once

#include <functional>
#include <string>

#include "step_case.h"

namespace cuda_on_cpu {

// Calls `visit` with every launch of the design, or those of one storage type. `brief`: only so many as show every
// access of every kernel to memory that threads could share, for a sanitizer that makes each launch slow.
void for_each_step_case(const std::string& storage, bool brief, uint64_t seed,
                        const std::function<void(const StepCase&)>& visit);

}  // namespace cuda_on_cpu
