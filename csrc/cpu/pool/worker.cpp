#include "cpu/pool/worker.h"

#include <pthread.h>
#include <signal.h>

#include <chrono>

namespace fusedoptim::cpu {
namespace {

using Clock = std::chrono::steady_clock;

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
    workers[next] != nullptr ? workers[next]->wake() : wake_below(next);
  }
}

bool Worker::start() noexcept {
  if (sem_init(&wake_, 0, 0) != 0) return false;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  bool started = true;
  try {
    std::thread thread(&Worker::serve, this);
    thread_ = thread.native_handle();
    thread.detach();
  } catch (...) {
    started = false;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return started;
}

bool Worker::try_submit(Job& job) {
  uintptr_t idle = 0;
  return job_.compare_exchange_strong(idle, reinterpret_cast<uintptr_t>(&job));
}

void Worker::set_affinity(const Processors& processors) {
  if (moving_.test_and_set(std::memory_order_acquire)) return;
  if (!(affinity_ == processors)) {
#if defined(__linux__)
    processors.set_as_affinity_of(thread_);
#endif
    affinity_ = processors;
  }
  moving_.clear(std::memory_order_release);
}

void Worker::wake() {
  if (asleep_.load() && asleep_.exchange(false)) sem_post(&wake_);
}

void Worker::cancel(const Job& job) {
  uintptr_t submitted = reinterpret_cast<uintptr_t>(&job);
  job_.compare_exchange_strong(submitted, 0);
}

void Worker::wait_for_end_of(const Job& job) {
  const uintptr_t taken = reinterpret_cast<uintptr_t>(&job) | kTaken;
  for (const auto end = Clock::now() + kSpin; job_.load() == taken;) {
    relax();
    if (Clock::now() < end) continue;
    ++waiting_;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      ended_.wait(lock, [&] { return job_.load() != taken; });
    }
    --waiting_;
    return;
  }
}

void Worker::serve() {
#if defined(__linux__)
  pthread_setname_np(pthread_self(), "fusedoptim");
#endif
  ask_for_short_slices();
  for (;;) {
    uintptr_t submitted = wait_for_job();
    if (!job_.compare_exchange_strong(submitted, submitted | kTaken)) continue;  // cancelled
    const Job& job = *reinterpret_cast<const Job*>(submitted);
    job.wake_below(member_);
    std::fesetenv(&job.environment);
    job.work(job.context, member_);
    job_.store(0);
    if (waiting_.load() > 0) {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
      }
      ended_.notify_all();
    }
  }
}

uintptr_t Worker::wait_for_job() {
  if (const long now = involuntary_switches(); now != switches_) {
    switches_ = now;
    undisturbed_jobs_ = 0;
  } else if (undisturbed_jobs_ < kUndisturbedJobs) {
    ++undisturbed_jobs_;
  }
  const auto spin = undisturbed_jobs_ < kUndisturbedJobs ? kSpin : kLongSpin;
  for (const auto end = Clock::now() + spin; Clock::now() < end; relax()) {
    if (const uintptr_t submitted = job_.load()) return submitted;
  }
  for (;;) {
    asleep_.store(true);
    if (const uintptr_t submitted = job_.load()) {
      asleep_.store(false);  // whoever wakes it at this moment wakes it once for nothing
      return submitted;
    }
    while (sem_wait(&wake_) != 0) {
    }
  }
}

}  // namespace fusedoptim::cpu
