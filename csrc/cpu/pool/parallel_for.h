// Work in many pieces, of which each thread claims piece after piece of its own share, the same from step to step so
// that its caches still know it, and then what is left of the others' shares: a thread which the operating system holds
// up delays no more than the piece that it has claimed.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/pool/team.h"

namespace fusedoptim::cpu {

// Calls `work(i)` once for each i in [0, count), from up to `threads` threads. `work` must not throw. `backwards` turns
// the order within each share around.
template <class Work>
void parallel_for(int64_t count, int threads, bool backwards, const Work& work) {
  threads = team_size(int(std::min<int64_t>(threads, count)));
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
  run_in_team(threads, claim, &pieces);
}

}  // namespace fusedoptim::cpu
