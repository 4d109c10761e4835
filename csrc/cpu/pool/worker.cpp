#include "cpu/pool/worker.h"

#include <pthread.h>
#include <signal.h>

#include <chrono>

namespace fusedoptim::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// How long a caller looks for the end of a helper before it sleeps, and a helper that has finished for more work:
// waking takes longer than most of what is waited for. Neither gives way meanwhile: a thread that does is behind all
// others when there is work again, but one that sleeps is put before them. A helper looks longer once no other thread
// has taken its processor for kJobsOfPeace jobs: where others want it too, it comes to have used up its part, and loses
// it amid a job.
constexpr auto kLooks = std::chrono::microseconds(20), kLooksInPeace = std::chrono::microseconds(50);

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

void Job::wake_below(int member) const {
  for (const int next : {2 * member + 1, 2 * member + 2}) {
    if (next >= threads) return;
    asked[next] != nullptr ? asked[next]->wake() : wake_below(next);
  }
}

bool Helper::start() noexcept {
  if (sem_init(&wake_, 0, 0) != 0) return false;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  bool started = true;
  try {
    std::thread thread(&Helper::serve, this);
    thread_ = thread.native_handle();
    thread.detach();
  } catch (...) {
    started = false;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return started;
}

bool Helper::offer(Job& job) {
  uintptr_t idle = 0;
  return at_hand_.compare_exchange_strong(idle, reinterpret_cast<uintptr_t>(&job));
}

void Helper::keep_to(const Processors& processors) {
  if (moving_.test_and_set(std::memory_order_acquire)) return;
  if (!(processors_ == processors)) {
#if defined(__linux__)
    processors.keep(thread_);
#endif
    processors_ = processors;
  }
  moving_.clear(std::memory_order_release);
}

void Helper::wake() {
  if (asleep_.load() && asleep_.exchange(false)) sem_post(&wake_);
}

void Helper::withdraw(const Job& job) {
  uintptr_t offered = reinterpret_cast<uintptr_t>(&job);
  at_hand_.compare_exchange_strong(offered, 0);
}

void Helper::wait_for_end_of(const Job& job) {
  const uintptr_t taken = reinterpret_cast<uintptr_t>(&job) | kTaken;
  for (const auto end = Clock::now() + kLooks; at_hand_.load() == taken;) {
    relax();
    if (Clock::now() < end) continue;
    ++waiting_;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      ended_.wait(lock, [&] { return at_hand_.load() != taken; });
    }
    --waiting_;
    return;
  }
}

void Helper::serve() {
#if defined(__linux__)
  pthread_setname_np(pthread_self(), "fusedoptim");
#endif
  ask_for_short_turns();
  for (;;) {
    uintptr_t offered = wait_for_offer();
    if (!at_hand_.compare_exchange_strong(offered, offered | kTaken)) continue;  // withdrawn
    const Job& job = *reinterpret_cast<const Job*>(offered);
    job.wake_below(member_);
    std::fesetenv(&job.environment);
    job.work(job.context, member_);
    at_hand_.store(0);
    if (waiting_.load() > 0) {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
      }
      ended_.notify_all();
    }
  }
}

uintptr_t Helper::wait_for_offer() {
  if (const long now = times_interrupted(); now != interrupted_) {
    interrupted_ = now;
    jobs_of_peace_ = 0;
  } else if (jobs_of_peace_ < kJobsOfPeace) {
    ++jobs_of_peace_;
  }
  const auto looks = jobs_of_peace_ < kJobsOfPeace ? kLooks : kLooksInPeace;
  for (const auto end = Clock::now() + looks; Clock::now() < end; relax()) {
    if (const uintptr_t offered = at_hand_.load()) return offered;
  }
  for (;;) {
    asleep_.store(true);
    if (const uintptr_t offered = at_hand_.load()) {
      asleep_.store(false);  // who wakes it at this moment leaves it one wakening that finds nothing
      return offered;
    }
    while (sem_wait(&wake_) != 0) {
    }
  }
}

}  // namespace fusedoptim::cpu
