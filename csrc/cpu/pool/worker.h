// One worker thread, and the job that is submitted to several of them.
#pragma once

#include <semaphore.h>

#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "cpu/pool/processors.h"
#include "cpu/pool/tuning.h"

namespace fusedoptim::cpu {

class Worker;

struct Job {
  void (*work)(void* context, int member);
  void* context;
  int threads;
  std::fenv_t environment;
  Worker* workers[kMaxThreads];  // by member; null where none has it

  // Wakes two members, each of which wakes two others: the last of many is awake after few steps, and nobody spends
  // long on waking.
  void wake_below(int member) const;
};

// One thread, which belongs to nobody and takes one job at a time. No lock is held where its caller would have to wait
// for it: the operating system may take the processor from a thread that holds one.
class Worker {
 public:
  explicit Worker(int member) : member_(member) {}

  // Starts the thread, with all signals blocked: they are for the threads that Python knows.
  bool start() noexcept;

  // False where it works for somebody else. It is to be woken if it sleeps.
  bool try_submit(Job& job);

  // Of several callers at once one has its way.
  void set_affinity(const Processors& processors);

  void wake();

  // Takes the job back if it was not taken up.
  void cancel(const Job& job);

  void wait_for_end_of(const Job& job);

 private:
  static constexpr uintptr_t kTaken = 1;

  [[noreturn]] void serve();
  uintptr_t wait_for_job();

  const int member_;
  std::thread::native_handle_type thread_{};  // never ends, so never dangles
  long switches_ = 0;                         // involuntary ones, as last seen
  int undisturbed_jobs_ = kUndisturbedJobs;   // since one
  std::atomic_flag moving_ = ATOMIC_FLAG_INIT;
  Processors affinity_;            // as it was last set; changes only with moving_ set
  std::atomic<uintptr_t> job_{0};  // none, the job that was submitted, or that job with kTaken
  std::atomic<bool> asleep_{false};
  sem_t wake_;
  std::atomic<int> waiting_{0};  // callers that sleep until it ends
  std::mutex mutex_;
  std::condition_variable ended_;
};

}  // namespace fusedoptim::cpu
