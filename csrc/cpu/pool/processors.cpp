#include "cpu/pool/processors.h"

#if defined(__linux__)
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdint>
#include <thread>

#include "cpu/pool/tuning.h"

namespace fusedoptim::cpu {

Processors Processors::of_this_thread() noexcept {
  Processors result;
#if defined(__linux__)
  result.known = sched_getaffinity(0, sizeof result.set, &result.set) == 0;  // fails with more than 1,024 of them
#endif
  return result;
}

int Processors::count() const noexcept {
#if defined(__linux__)
  if (known) return CPU_COUNT(&set);
#endif
  return std::max(1, int(std::thread::hardware_concurrency()));
}

bool Processors::operator==(const Processors& other) const noexcept {
#if defined(__linux__)
  if (known && other.known) return CPU_EQUAL(&set, &other.set);
#endif
  return known == other.known;
}

Processors Processors::without_this_one() const noexcept {
  Processors result = *this;
#if defined(__linux__)
  const int here = sched_getcpu();
  if (known && here >= 0 && here < CPU_SETSIZE && count() > 1) CPU_CLR(here, &result.set);
#endif
  return result;
}

#if defined(__linux__)
void Processors::set_as_affinity_of(pthread_t thread) const noexcept {
  if (known) pthread_setaffinity_np(thread, sizeof set, &set);
}
#endif

void ask_for_short_slices() noexcept {
#if defined(__linux__) && defined(SYS_sched_setattr)
  if (sched_getscheduler(0) != SCHED_OTHER) return;  // as the user wants it
  // As linux/sched/types.h has it; glibc declares it from 2.41 on.
  struct Attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } attributes{sizeof(Attributes),       SCHED_OTHER, 0, 0, 0,
               uint64_t(kSlice.count()), 0,           0};  // for SCHED_OTHER since Linux 6.12
  attributes.nice = getpriority(PRIO_PROCESS, 0);
  syscall(SYS_sched_setattr, 0, &attributes, 0);
#endif
}

long involuntary_switches() noexcept {
#if defined(__linux__) && defined(RUSAGE_THREAD)
  rusage usage;
  if (getrusage(RUSAGE_THREAD, &usage) == 0) return usage.ru_nivcsw;
#endif
  return 0;
}

}  // namespace fusedoptim::cpu
