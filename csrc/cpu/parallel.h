// One parallel region in which threads claim the next piece of work, so that a thread which the operating system
// holds up delays no more than the piece that it has claimed.
#pragma once

#include <atomic>
#include <cstdint>

namespace fusedoptim::cpu {

// Calls `work(i)` once for each i in [0, count), from up to `threads` threads. `work` must not throw.
template <class Work>
void parallel_for(int64_t count, int threads, const Work& work) {
  if (threads > count) threads = int(count);
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) work(i);
    return;
  }
#if defined(_OPENMP)
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(threads)
  for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(i);
#else
  for (int64_t i = 0; i < count; ++i) work(i);
#endif
}

}  // namespace fusedoptim::cpu
