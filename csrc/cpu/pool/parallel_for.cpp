#include "cpu/pool/team.h"

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

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace fusedoptim::cpu {
namespace {

#if defined(_OPENMP)

using Clock = std::chrono::steady_clock;

// The threads that OpenMP has for the calling thread, known from its last region by the clocks of their processor time.
class Workers {
 public:
  // Whether they all run at this moment, as they do for some milliseconds after each region, in wait for the next. One
  // that does not may have to wait for a processor, and everybody for it. True as well if nothing is known.
  bool are_running(int threads) noexcept {
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

  void expect(int threads) noexcept {
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

thread_local Workers workers;

// Whether a region of OpenMP is worth entering. It ends when each thread of the team has been given a processor, which
// takes milliseconds where another process holds one. After several such waits regions are left alone for a number of
// runs, which doubles each time that they turn out no better afterwards. A hint only, for all threads together.
class Trust {
 public:
  bool is_given() noexcept {
    const int left = pause_.load(std::memory_order_relaxed);
    if (left > 0) pause_.store(left - 1, std::memory_order_relaxed);
    return left <= 0;
  }

  void judge(Clock::duration wait) noexcept {
    if (wait < kStall) {
      if (good_.fetch_add(1, std::memory_order_relaxed) + 1 < kForgiven) return;
      good_.store(0, std::memory_order_relaxed);
      stalls_.store(std::max(0, stalls_.load(std::memory_order_relaxed) - 1), std::memory_order_relaxed);
      next_.store(kShortest, std::memory_order_relaxed);
      return;
    }
    good_.store(0, std::memory_order_relaxed);
    if (stalls_.fetch_add(1, std::memory_order_relaxed) + 1 < kTolerated) return;
    const int runs = next_.load(std::memory_order_relaxed);
    pause_.store(runs, std::memory_order_relaxed);
    next_.store(std::min(2 * runs, kLongest), std::memory_order_relaxed);
    stalls_.store(kTolerated - 1, std::memory_order_relaxed);  // one more will do
  }

 private:
  static constexpr auto kStall = std::chrono::microseconds(200);  // far more than one piece of work takes
  static constexpr int kTolerated = 3, kForgiven = 256, kShortest = 512, kLongest = 16384;
  std::atomic<int> stalls_{0}, good_{0}, pause_{0}, next_{kShortest};
};

Trust trust;

// Torch's team is of one size. A region with fewer threads would end the others, to be started anew by torch.
bool suits_openmp(int threads) noexcept {
  return threads == omp_get_max_threads() && !in_forked_child() && workers.are_running(threads) && trust.is_given();
}

void run_in_region(int threads, void (*work)(void* context, int member), void* context) noexcept {
  std::fenv_t environment;
  std::fegetenv(&environment);
  Clock::time_point end;
  Workers& own_workers = workers;
  own_workers.expect(threads);
#pragma omp parallel num_threads(threads)
  {
    const int member = omp_get_thread_num();
    own_workers.arrived(member);
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
  trust.judge(Clock::now() - end);
}

#endif

}  // namespace

int team_size(int threads) noexcept {
  if (threads > 1) threads = std::min({threads, Processors::of_this_thread().count(), kMaxThreads});
  return threads;
}

void run_in_team(int threads, void (*work)(void* context, int member), void* context) noexcept {
#if defined(_OPENMP)
  if (suits_openmp(threads)) return run_in_region(threads, work, context);
#endif
  run_with_helpers(threads, work, context);
}

}  // namespace fusedoptim::cpu
