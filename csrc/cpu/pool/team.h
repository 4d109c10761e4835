// Whose threads share the work: torch's own, which are awake where they have just computed the gradients, or helpers of
// ours (pool.h), which nobody has to wait for. The result is the same.
#pragma once

#include "cpu/pool/worker_pool.h"

namespace fusedoptim::cpu {

// How many threads are worth asking for where `threads` are wanted: no more than there are processors for this thread.
int team_size(int threads) noexcept;

// Calls `work(context, k)` in several threads, each k in [0, threads) at most once, 0 in this one. Each call must do
// all that is left to do, so that one alone suffices; it must not throw. Returns when all calls that began have ended.
// All threads compute in this one's floating-point environment, flushing of denormal numbers included.
void run_in_team(int threads, void (*work)(void* context, int member), void* context) noexcept;

}  // namespace fusedoptim::cpu
