// Launches of the kernel that zeroes memory.
#pragma once

#include <cstdint>

namespace cuda_on_cpu {

struct ZeroTotals {
  int64_t launches = 0, bytes = 0;
};

// Every size up to 40 bytes and those around a chunk, at every alignment. Throws Mismatch or Fault. `brief` and `guard`
// as for steps.
ZeroTotals check_zero(bool brief, int guard);

}  // namespace cuda_on_cpu
