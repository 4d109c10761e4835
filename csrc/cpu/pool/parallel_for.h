// The thread pool, as the CPU driver sees it; the other headers of this folder are its own.
//
// Work comes in many pieces. Each thread claims piece after piece of its own share, which is the same from step to
// step, so that its caches still hold it, and then what is left of the others' shares: a thread that the operating
// system holds up delays no more than the piece that it has claimed.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/pool/tuning.h"

namespace fusedoptim::cpu {

// How many threads are worth asking for where `threads` are wanted: no more than there are processors for this thread.
int usable_threads(int threads) noexcept;

// Calls `work(context, k)` in several threads, each k in [0, threads) at most once, 0 in this one. Each call must do
// all that is left to do, so that one alone suffices; it must not throw. Returns when all calls that began have ended.
// All threads compute in this one's floating-point environment, flushing of denormal numbers included.
//
// The threads are OpenMP's, which torch uses too, where they are awake, else workers of our own (worker_pool.h), which
// nobody has to wait for. The result is the same.
void run_on_threads(int threads, void (*work)(void* context, int member), void* context) noexcept;

// Calls `work(i)` once for each i in [0, count), from up to `threads` threads. `work` must not throw. `backwards`: each
// share from its end to its beginning.
template <class Work>
void parallel_for(int64_t count, int threads, bool backwards, const Work& work) {
  threads = usable_threads(int(std::min<int64_t>(threads, count)));
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) work(backwards ? count - 1 - i : i);
    return;
  }
  struct alignas(64) Share {
    int64_t begin, end;
    std::atomic<int64_t> next;
  };
  struct Pieces {
    const Work& work;
    int threads;
    bool backwards;
    Share* shares;
  };
  Share shares[kMaxThreads];  // written as far as there are threads
  Pieces pieces{work, threads, backwards, shares};
  for (int t = 0; t < threads; ++t) {
    Share& share = shares[t];
    share.begin = count * t / threads;
    share.end = count * (t + 1) / threads;
    share.next.store(share.begin, std::memory_order_relaxed);
  }
  const auto claim = [](void* context, int member) {
    Pieces& pieces = *static_cast<Pieces*>(context);
    for (int k = 0; k < pieces.threads; ++k) {
      Share& share = pieces.shares[(member + k) % pieces.threads];
      for (int64_t i; (i = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) {
        pieces.work(pieces.backwards ? share.begin + share.end - 1 - i : i);
      }
    }
  };
  run_on_threads(threads, claim, &pieces);
}

}  // namespace fusedoptim::cpu
