// Worker threads that share the work of others, and that nobody waits for who has not begun.
//
// OpenMP's end of a region waits for every thread of it. Where another process holds the processor of one that has
// nothing left to do, the whole step waits until it has been given the processor to find that out. Here work is
// submitted to each worker, and cancelled where the worker has not taken it up when all is done.
#pragma once

namespace fusedoptim::cpu {

// Calls `work(context, 0)` in this thread and, as far as workers come in time, `work(context, k)` in others, each k in
// [1, threads) at most once. Each call must do all that is left to do, so one alone suffices; it must not throw.
// Returns when all calls that began have ended. Workers compute in this thread's floating-point environment, flushing
// of denormal numbers included.
void run_on_workers(int threads, void (*work)(void* context, int member), void* context) noexcept;

// Whether this process is a fork of another, from before this module was loaded or after: threads other than the
// forking one, those of OpenMP too, were left behind. True as well where the system does not tell.
bool in_forked_child() noexcept;

}  // namespace fusedoptim::cpu
