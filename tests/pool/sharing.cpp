// A step is cut into pieces that two threads share: with kernels that only note what they are given, each element must
// be met exactly once, by more than one thread, in the caller's floating-point environment. With OpenMP the threads are
// its own, without it our workers. Prints "all correct", or what was wrong.
#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "cpu/pool/parallel_for.h"
#include "cpu/run.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

using namespace fusedoptim;

namespace {

constexpr int kThreads = 2;
constexpr auto kPatience = std::chrono::seconds(20);

[[noreturn]] void fail(const char* what) {
  std::printf("wrong: %s\n", what);
  std::fflush(stdout);
  std::_Exit(1);
}

template <class Done>
void wait_until(Done done, const char* else_wrong) {
  for (const auto end = std::chrono::steady_clock::now() + kPatience; !done();) {
    if (std::chrono::steady_clock::now() > end) fail(else_wrong);
    std::this_thread::yield();
  }
}

std::mutex mutex;
std::set<std::thread::id> workers;
std::atomic<int> met{0};
bool first = true;  // later steps may be left to workers

// Notes each element, in place of its parameter, and waits until a second thread has come.
void note(const void*, void* const* operands, int64_t begin, int64_t count, double, double) {
  if (std::fegetround() != FE_UPWARD) fail("another floating-point environment");
#if defined(_OPENMP)
  if (first && omp_get_num_threads() != kThreads) fail("not in a region of OpenMP");
#endif
  for (int64_t i = begin; i < begin + count; ++i) ++static_cast<int32_t*>(operands[0])[i];
  {
    const std::lock_guard<std::mutex> lock(mutex);
    workers.insert(std::this_thread::get_id());
    met.store(int(workers.size()));
  }
  wait_until([] { return met.load() == kThreads; }, "one thread alone did all the work");
}

// A step over `tensors` parameters of `size` elements.
void step(int tensors, int64_t size) {
  std::vector<std::vector<int32_t>> counts(tensors, std::vector<int32_t>(size, 0));
  std::vector<Task> tasks(tensors);
  for (int t = 0; t < tensors; ++t) {
    tasks[t].operands[0] = counts[t].data();
    tasks[t].count = size;
  }
  workers.clear();
  met.store(0);
  cpu::RuleKernels kernels{};
  kernels.plain[0][int(DType::f32)] = note;
  const cpu::RuleKernels* const rules[] = {&kernels};
  cpu::InstructionSet set{};
  set.rules = rules;
  RunOptions options;
  options.threads = kThreads;
  cpu::Schedule schedule;
  schedule.plan(tasks.data(), tasks.size(), options);
  std::fesetround(FE_UPWARD);
  schedule.run(set);
  std::fesetround(FE_TONEAREST);
  for (const auto& of_tensor : counts) {
    for (int32_t n : of_tensor) {
      if (n != 1) fail("an element that was not met exactly once");
    }
  }
}

// The first piece of this thread's share takes until the other thread comes for the second, its own share done: the
// rest both claim at once.
void claim_from_one_share(bool backwards) {
  constexpr int64_t kCount = 1 << 17, kHalf = kCount / kThreads;
  const int64_t first_piece = backwards ? kHalf - 1 : 0;
  std::vector<std::atomic<int>> done(kCount);
  std::atomic<bool> here{false}, together{false};
  cpu::parallel_for(kCount, kThreads, backwards, [&](int64_t i) {
    done[i].fetch_add(1, std::memory_order_relaxed);
    if (i == first_piece) {
      wait_until([&] { return here.load(); }, "no second thread came");
      together.store(true);
    } else if (i < kHalf && !together.load(std::memory_order_relaxed)) {
      here.store(true);
      wait_until([&] { return together.load(); }, "the first thread stayed away");
    }
  });
  for (const auto& n : done) {
    if (n.load() != 1) fail("a piece that was not done exactly once");
  }
}

}  // namespace

int main() {
  // The other thread begins here, in the usual environment.
#if defined(_OPENMP)
  omp_set_num_threads(kThreads);
#pragma omp parallel num_threads(kThreads)
  if (std::fegetround() != FE_TONEAREST) fail("not the usual floating-point environment to begin with");
#else
  claim_from_one_share(false);
#endif
  step(1, 1 << 18);
#if defined(_OPENMP)
#pragma omp parallel num_threads(kThreads)
  if (std::fegetround() != FE_TONEAREST) fail("a thread of OpenMP was left in another floating-point environment");
#endif
  first = false;
  step(4096, 65);
  for (int i = 0; i < 10; ++i) claim_from_one_share(i % 2 == 1);
  std::printf("all correct\n");
}
