// One of the threads that help with the work of others, and a job that they are offered.
#pragma once

#include <semaphore.h>

#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "cpu/pool/worker_pool.h"
#include "cpu/pool/processors.h"

namespace fusedoptim::cpu {

class Helper;

struct Job {
  void (*work)(void* context, int member);
  void* context;
  int threads;
  std::fenv_t environment;
  Helper* asked[kMaxThreads];  // by member; nothing where none was to be had

  // Each wakes two others, so the last of many is woken after few steps, and nobody spends long on it.
  void wake_below(int member) const;
};

// One thread, which belongs to nobody and takes one job at a time. No lock is held where its caller would have to wait
// for it: the operating system may take the processor from a thread that holds one.
class Helper {
 public:
  explicit Helper(int member) : member_(member) {}

  // Starts the thread, with all signals blocked: they are for the threads that Python knows.
  bool start() noexcept;

  // False where it works for somebody else. It is to be woken if it sleeps.
  bool offer(Job& job);

  // Woken where its caller runs it would wait for its caller. Of several callers at once one has its way.
  void keep_to(const Processors& processors);

  void wake();

  // Takes the offer back if it was not taken up.
  void withdraw(const Job& job);

  void wait_for_end_of(const Job& job);

 private:
  static constexpr uintptr_t kTaken = 1;
  static constexpr int kJobsOfPeace = 1024;

  [[noreturn]] void serve();
  uintptr_t wait_for_offer();

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

}  // namespace fusedoptim::cpu
