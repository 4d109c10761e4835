#include "cpu/pool/worker_pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>

#include "cpu/pool/tuning.h"
#include "cpu/pool/worker.h"

namespace fusedoptim::cpu {
namespace {

// Workers are started when they are first wanted, and live as long as the process.
class Pool {
 public:
  // The worker with this number, or null where no thread can be started.
  Worker* worker(int member) noexcept {
    Worker* known = workers_[member].load(std::memory_order_acquire);
    if (known != nullptr) return known;
    const std::lock_guard<std::mutex> lock(starting_);
    known = workers_[member].load(std::memory_order_relaxed);
    if (known != nullptr) return known;
    auto worker = std::unique_ptr<Worker>(new (std::nothrow) Worker(member));
    if (worker == nullptr || !worker->start()) return nullptr;
    workers_[member].store(worker.get(), std::memory_order_release);
    return worker.release();
  }

 private:
  std::mutex starting_;
  std::atomic<Worker*> workers_[kMaxThreads] = {};
};

// Whether this process was forked and has started no other program since: the kernel's mark PF_FORKNOEXEC, in the
// seventh field after the command's name of /proc/self/stat. True as well where that cannot be read.
bool was_forked() noexcept {
#if defined(__linux__)
  constexpr unsigned kForkedNotExecuted = 0x40;
  std::FILE* const file = std::fopen("/proc/self/stat", "re");
  if (file == nullptr) return true;
  char text[512];
  text[std::fread(text, 1, sizeof text - 1, file)] = 0;
  std::fclose(file);
  const char* const name_end = std::strrchr(text, ')');  // the name may have parentheses and spaces of its own
  unsigned flags = 0;
  if (name_end == nullptr || std::sscanf(name_end, ") %*c %*d %*d %*d %*d %*d %u", &flags) != 1) return true;
  return (flags & kForkedNotExecuted) != 0;
#else
  return false;
#endif
}

// Never destroyed, since its threads end with the process. A forked child has none of them, and locks in whatever
// state they were in, so it begins with a pool of its own.
std::atomic<Pool*> pool{nullptr};
std::atomic<bool> forked{was_forked()};  // before this module was loaded, or, below, since
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

void run_on_workers(int threads, void (*work)(void* context, int member), void* context) noexcept {
  Pool* const pool = threads > 1 ? the_pool() : nullptr;
  if (pool == nullptr) return work(context, 0);
  Job job;  // `workers` is written as far as there are threads
  job.work = work;
  job.context = context;
  job.threads = std::min(threads, kMaxThreads);
  std::fegetenv(&job.environment);
  // Where all processors are wanted, workers are kept off this one: the system tends to wake them here, where they
  // would wait for this thread. With fewer threads than processors it finds them a free one.
  const Processors here = Processors::of_this_thread();
  const bool all_are_wanted = here.known && job.threads >= here.count();
  const Processors others = all_are_wanted ? here.without_this_one() : here;
  // From the last to the first: a worker that has begun wakes others with higher numbers.
  for (int member = job.threads - 1; member > 0; --member) {
    Worker* const worker = pool->worker(member);
    if (worker != nullptr) worker->set_affinity(others);
    job.workers[member] = worker != nullptr && worker->try_submit(job) ? worker : nullptr;
  }
  job.wake_below(0);
  work(context, 0);
  // What no worker has taken up is cancelled before the others are waited for.
  for (int member = 1; member < job.threads; ++member) {
    if (job.workers[member] != nullptr) job.workers[member]->cancel(job);
  }
  for (int member = 1; member < job.threads; ++member) {
    if (job.workers[member] != nullptr) job.workers[member]->wait_for_end_of(job);
  }
}

}  // namespace fusedoptim::cpu
