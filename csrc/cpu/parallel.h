// One parallel region in which each thread claims piece after piece of its own share, the same from step to step so
// that its caches still know it, and then what is left of the others' shares: a thread which the operating system holds
// up delays no more than the piece that it has claimed.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace fusedoptim::cpu {

// Calls `work(i)` once for each i in [0, count), from up to `threads` threads. `work` must not throw. `backwards` turns
// the order within each share around.
template <class Work>
void parallel_for(int64_t count, int threads, bool backwards, const Work& work) {
  if (threads > count) threads = int(count);
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) work(backwards ? count - 1 - i : i);
    return;
  }
#if defined(_OPENMP)
  struct alignas(64) Share {
    int64_t begin, end;
    std::atomic<int64_t> next;
  };
  constexpr int kMaxThreads = 256;
  threads = std::min(threads, kMaxThreads);
  Share shares[kMaxThreads];
  for (int t = 0; t < threads; ++t) {
    shares[t].begin = count * t / threads;
    shares[t].end = count * (t + 1) / threads;
    shares[t].next.store(shares[t].begin, std::memory_order_relaxed);
  }
#pragma omp parallel num_threads(threads)
  for (int k = 0; k < threads; ++k) {
    Share& share = shares[(omp_get_thread_num() + k) % threads];
    for (int64_t i; (i = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) {
      work(backwards ? share.begin + share.end - 1 - i : i);
    }
  }
#else
  for (int64_t i = 0; i < count; ++i) work(i);
#endif
}

}  // namespace fusedoptim::cpu
