#include "cpu/pool.h"

#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

#include "cpu/processors.h"

namespace fusedoptim::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// How long a caller looks for the end of a helper before it sleeps, and a helper that has finished for more work:
// waking takes longer than most of what is waited for. Neither gives way meanwhile: a thread that does is behind all
// others when there is work again, but one that sleeps is put before them. A helper looks longer once no other thread
// has taken its processor for so many jobs: where others want it too, it comes to have used up its part, and loses it
// amid a job.
constexpr auto kLooks = std::chrono::microseconds(20), kLooksInPeace = std::chrono::microseconds(50);
constexpr int kJobsOfPeace = 1024;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

class Helper;

struct Job {
  void (*work)(void* context, int member);
  void* context;
  int threads;
  std::fenv_t environment;
  Helper* asked[kMaxThreads];  // by member; nothing where none was to be had

  void wake_below(int member) const;
};

// One thread, which belongs to nobody and takes one job at a time. No lock is held where its caller would have to wait
// for it: the operating system may take the processor from a thread that holds one.
class Helper {
 public:
  explicit Helper(int member) : member_(member) {}

  // Starts the thread, with all signals blocked: they are for the threads that Python knows.
  bool start() noexcept {
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

  // False where it works for somebody else. It is to be woken if it sleeps.
  bool offer(Job& job) {
    uintptr_t idle = 0;
    return at_hand_.compare_exchange_strong(idle, reinterpret_cast<uintptr_t>(&job));
  }

  // Woken where its caller runs it would wait for its caller. Of several callers at once one has its way.
  void keep_to(const Processors& processors) {
    if (moving_.test_and_set(std::memory_order_acquire)) return;
    if (!(processors_ == processors)) {
#if defined(__linux__)
      processors.keep(thread_);
#endif
      processors_ = processors;
    }
    moving_.clear(std::memory_order_release);
  }

  void wake() {
    if (asleep_.load() && asleep_.exchange(false)) sem_post(&wake_);
  }

  // Takes the offer back if it was not taken up.
  void withdraw(const Job& job) {
    uintptr_t offered = reinterpret_cast<uintptr_t>(&job);
    at_hand_.compare_exchange_strong(offered, 0);
  }

  void wait_for_end_of(const Job& job) {
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

 private:
  static constexpr uintptr_t kTaken = 1;

  [[noreturn]] void serve() {
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

  uintptr_t wait_for_offer() {
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

  const int member_;
  std::thread::native_handle_type thread_{};  // never ends, so never dangles
  long interrupted_ = 0;
  int jobs_of_peace_ = kJobsOfPeace;
  std::atomic_flag moving_ = ATOMIC_FLAG_INIT;
  Processors processors_;              // that it was told to keep to; changes only with moving_ set
  std::atomic<uintptr_t> at_hand_{0};  // nothing, the job that is offered, or that job with kTaken
  std::atomic<bool> asleep_{false};
  sem_t wake_;
  std::atomic<int> waiting_{0};  // callers that sleep until it ends
  std::mutex mutex_;
  std::condition_variable ended_;
};

// Each wakes two others, so the last of many is woken after few steps, and nobody spends long on it.
void Job::wake_below(int member) const {
  for (const int next : {2 * member + 1, 2 * member + 2}) {
    if (next >= threads) return;
    asked[next] != nullptr ? asked[next]->wake() : wake_below(next);
  }
}

// Helpers are started when they are first wanted, and live as long as the process.
class Pool {
 public:
  // The helper with this number, or nothing where no thread can be started.
  Helper* helper(int member) noexcept {
    Helper* known = helpers_[member].load(std::memory_order_acquire);
    if (known != nullptr) return known;
    const std::lock_guard<std::mutex> lock(starting_);
    known = helpers_[member].load(std::memory_order_relaxed);
    if (known != nullptr) return known;
    auto helper = std::unique_ptr<Helper>(new (std::nothrow) Helper(member));
    if (helper == nullptr || !helper->start()) return nullptr;
    helpers_[member].store(helper.get(), std::memory_order_release);
    return helper.release();
  }

 private:
  std::mutex starting_;
  std::atomic<Helper*> helpers_[kMaxThreads] = {};
};

// Never destroyed, since its threads end with the process. A forked child has none of them, and locks in whatever
// state they were in, so it begins with a pool of its own.
std::atomic<Pool*> pool{nullptr};
std::atomic<bool> forked{false};
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] {
  pool.store(nullptr, std::memory_order_release);
  forked.store(true, std::memory_order_release);
});

Pool* the_pool() noexcept {
  Pool* known = pool.load(std::memory_order_acquire);
  if (known != nullptr) return known;
  auto made = std::unique_ptr<Pool>(new (std::nothrow) Pool);
  if (made == nullptr || pool.compare_exchange_strong(known, made.get(), std::memory_order_acq_rel)) {
    return made.release();
  }
  return known;
}

}  // namespace

bool in_forked_child() noexcept { return forked.load(std::memory_order_acquire); }

void run_with_helpers(int threads, void (*work)(void* context, int member), void* context) noexcept {
  Pool* const pool = threads > 1 ? the_pool() : nullptr;
  if (pool == nullptr) return work(context, 0);
  Job job;  // `asked` is written as far as there are threads
  job.work = work;
  job.context = context;
  job.threads = std::min(threads, kMaxThreads);
  std::fegetenv(&job.environment);
  // With fewer threads than processors the system finds them a free one.
  const Processors here = Processors::of_this_thread();
  const bool all_are_wanted = here.known && job.threads >= here.count();
  const Processors others = all_are_wanted ? here.without_this_one() : here;
  // From the last to the first: one that has begun looks at those after it.
  for (int member = job.threads - 1; member > 0; --member) {
    Helper* const helper = pool->helper(member);
    if (helper != nullptr) helper->keep_to(others);
    job.asked[member] = helper != nullptr && helper->offer(job) ? helper : nullptr;
  }
  job.wake_below(0);
  work(context, 0);
  // All offers that nobody has taken up are withdrawn before the others are waited for.
  for (int member = 1; member < job.threads; ++member) {
    if (job.asked[member] != nullptr) job.asked[member]->withdraw(job);
  }
  for (int member = 1; member < job.threads; ++member) {
    if (job.asked[member] != nullptr) job.asked[member]->wait_for_end_of(job);
  }
}

}  // namespace fusedoptim::cpu
