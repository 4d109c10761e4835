// Many callers share the work of many small runs among the workers, and fork in between: each piece must be done
// exactly once before its run returns, in the caller's floating-point environment, by members that are in range and
// differ. Prints "all correct", or what was wrong.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cfenv>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "cpu/pool/worker_pool.h"

using fusedoptim::cpu::in_forked_child;
using fusedoptim::cpu::run_on_workers;

namespace {

[[noreturn]] void fail(const char* what) {
  std::printf("wrong: %s\n", what);
  std::fflush(stdout);
  std::_Exit(1);
}

struct Run {
  int pieces, threads, rounding, length;
  std::atomic<int> next{0}, inside{0};
  std::atomic<bool> over{false};
  std::vector<int> done;  // not atomic: that nobody writes it at the same time, or after the end, is what is tested
  std::vector<std::atomic<int>> members;

  Run(int n, int t, int mode, int k) : pieces(n), threads(t), rounding(mode), length(k), done(n, 0), members(t) {}
};

void work(void* context, int member) {
  Run& run = *static_cast<Run*>(context);
  if (member < 0 || member >= run.threads) fail("a member out of range");
  if (run.members[member].fetch_add(1) != 0) fail("two threads with one number");
  if (std::fegetround() != run.rounding) fail("another floating-point environment");
  run.inside.fetch_add(1);
  if (run.over.load()) fail("work after the end");
  for (int i; (i = run.next.fetch_add(1)) < run.pieces;) {
    volatile double x = i;
    for (int k = 0; k < run.length; ++k) x = x * 1.000001;
    run.done[i] += 1;
  }
  run.inside.fetch_sub(1);
}

int shared = 0;  // of the runs of the main thread, those in which a worker took part

void many_runs(unsigned seed, int count, bool counting) {
  std::mt19937 random(seed);
  const int modes[] = {FE_TONEAREST, FE_UPWARD, FE_TOWARDZERO};
  for (int i = 0; i < count; ++i) {
    const bool few = random() % 4 == 0;  // and long ones: then somebody is in the middle of one at the end
    Run run(int(random() % (few ? 10 : 200)), 1 + int(random() % 9), modes[random() % 3], few ? 20000 : 50);
    std::fesetround(run.rounding);
    run_on_workers(run.threads, work, &run);
    run.over.store(true);
    if (run.inside.load() != 0) fail("returned before the end");
    for (int n : run.done) {
      if (n != 1) fail("a piece that was not done exactly once");
    }
    if (run.members[0].load() != 1) fail("the caller did not take part");
    for (int m = 1; m < run.threads && counting; ++m) {
      if (run.members[m].load() != 0) {
        ++shared;
        break;
      }
    }
    if (random() % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));  // workers sleep
  }
  std::fesetround(FE_TONEAREST);
}

void from_several_threads(unsigned seed, int count) {
  std::vector<std::thread> callers;
  for (unsigned t = 1; t < 4; ++t) callers.emplace_back(many_runs, seed + t, count, false);
  many_runs(seed, count, true);
  for (std::thread& caller : callers) caller.join();
}

}  // namespace

int main(int argc, char** argv) {
  const int count = argc > 1 ? std::atoi(argv[1]) : 2000, forks = argc > 2 ? std::atoi(argv[2]) : 20;
  if (in_forked_child()) fail("a program that was started anew takes itself for a fork");
  from_several_threads(1, count);
  if (shared == 0) fail("no worker ever took part");
  for (int i = 0; i < forks; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);
      if (!in_forked_child()) fail("a fork that does not know it");
      from_several_threads(100 + i, count / 20);
      std::_Exit(0);
    }
    many_runs(200 + i, count / 20, false);
    int status = 0;
    if (waitpid(child, &status, 0) != child || status != 0) fail("a forked child");
  }
  std::printf("all correct\n");
}
