#include "cpu/pool/parallel_for.h"

#if defined(__linux__)
#include <pthread.h>
#include <time.h>
#endif

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <new>
#include <vector>

#include "cpu/pool/processors.h"
#include "cpu/pool/worker_pool.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace fusedoptim::cpu {
namespace {

#if defined(_OPENMP)

using Clock = std::chrono::steady_clock;

// The threads that OpenMP has for the calling thread, known by the clocks of their processor time in its last region.
class OpenMpThreads {
 public:
  // Whether they all run at this moment, as they do for some milliseconds after each region, waiting for the next. One
  // that does not may have to wait for a processor, and the region for it. True as well if nothing is known.
  bool are_running([[maybe_unused]] int threads) noexcept {
#if defined(__linux__)
    if (int(clocks_.size()) != threads) return true;
    for (int k = 1; k < threads; ++k) {
      if (clock_gettime(clocks_[k].id, &clocks_[k].then) != 0) return true;  // it has ended: there will be another
    }
    for (int k = 1; k < threads; ++k) {
      timespec now{};
      clock_gettime(clocks_[k].id, &now);
      if (now.tv_nsec == clocks_[k].then.tv_nsec) return false;
    }
#endif
    return true;
  }

  void expect([[maybe_unused]] int threads) noexcept {
#if defined(__linux__)
    try {
      clocks_.resize(threads);
    } catch (const std::bad_alloc&) {
      clocks_.clear();
    }
#endif
  }

  void arrived([[maybe_unused]] int member) noexcept {
#if defined(__linux__)
    if (member < int(clocks_.size())) pthread_getcpuclockid(pthread_self(), &clocks_[member].id);
#endif
  }

 private:
#if defined(__linux__)
  struct Clock {
    clockid_t id;
    timespec then;
  };
  std::vector<Clock> clocks_;
#endif
};

thread_local OpenMpThreads openmp_threads;

// Whether a region of OpenMP is worth entering. It ends when each of its threads has been given a processor, which
// takes milliseconds where another process holds one. After several such stalls no region is entered for a number of
// runs, which doubles each time that the next ones stall as well. A hint only, for all threads together.
class OpenMpBackOff {
 public:
  bool allows_region() noexcept {
    const int left = pause_.load(std::memory_order_relaxed);
    if (left > 0) pause_.store(left - 1, std::memory_order_relaxed);
    return left <= 0;
  }

  // `wait`: from the end of the caller's own work to the end of the region.
  void record(Clock::duration wait) noexcept {
    if (wait < kStall) {
      if (good_.fetch_add(1, std::memory_order_relaxed) + 1 < kGoodRuns) return;
      good_.store(0, std::memory_order_relaxed);
      stalls_.store(std::max(0, stalls_.load(std::memory_order_relaxed) - 1), std::memory_order_relaxed);
      next_.store(kShortestPause, std::memory_order_relaxed);
      return;
    }
    good_.store(0, std::memory_order_relaxed);
    if (stalls_.fetch_add(1, std::memory_order_relaxed) + 1 < kStallsAllowed) return;
    const int runs = next_.load(std::memory_order_relaxed);
    pause_.store(runs, std::memory_order_relaxed);
    next_.store(std::min(2 * runs, kLongestPause), std::memory_order_relaxed);
    stalls_.store(kStallsAllowed - 1, std::memory_order_relaxed);  // one more will do
  }

 private:
  std::atomic<int> stalls_{0}, good_{0}, pause_{0}, next_{kShortestPause};
};

OpenMpBackOff back_off;

// A region with fewer threads than torch's own would end the others, to be started anew by torch.
bool suits_openmp(int threads) noexcept {
  return threads == omp_get_max_threads() && !in_forked_child() && openmp_threads.are_running(threads) &&
         back_off.allows_region();
}

void run_in_region(int threads, void (*work)(void* context, int member), void* context) noexcept {
  std::fenv_t environment;
  std::fegetenv(&environment);
  Clock::time_point end;
  OpenMpThreads& own_threads = openmp_threads;
  own_threads.expect(threads);
#pragma omp parallel num_threads(threads)
  {
    const int member = omp_get_thread_num();
    own_threads.arrived(member);
    if (member == 0) {
      work(context, 0);
      end = Clock::now();
    } else {
      std::fenv_t own;
      std::fegetenv(&own);
      std::fesetenv(&environment);
      work(context, member);
      std::fesetenv(&own);
    }
  }
  back_off.record(Clock::now() - end);
}

#endif

}  // namespace

int usable_threads(int threads) noexcept {
  if (threads > 1) threads = std::min({threads, Processors::of_this_thread().count(), kMaxThreads});
  return threads;
}

void run_on_threads(int threads, void (*work)(void* context, int member), void* context) noexcept {
#if defined(_OPENMP)
  if (suits_openmp(threads)) return run_in_region(threads, work, context);
#endif
  run_on_workers(threads, work, context);
}

}  // namespace fusedoptim::cpu
