// Which processors a thread may use, and how our own threads find one.
#pragma once

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace fusedoptim::cpu {

// A set of them; not `known` where the system does not tell.
struct Processors {
  bool known = false;
#if defined(__linux__)
  cpu_set_t set;
#endif

  // Those that the calling thread may use.
  static Processors of_this_thread() noexcept;

  int count() const noexcept;  // at least 1; all there are if none are known
  bool operator==(const Processors& other) const noexcept;

  // All but the one on which the calling thread runs, unless that is the only one.
  Processors without_this_one() const noexcept;

#if defined(__linux__)
  void set_as_affinity_of(pthread_t thread) const noexcept;
#endif
};

// Asks for kSlice as the calling thread's time slice: a thread of short slices soon runs after it is woken.
void ask_for_short_slices() noexcept;

// How often another thread has taken the processor from the calling one; 0 where the system does not tell.
long involuntary_switches() noexcept;

}  // namespace fusedoptim::cpu
