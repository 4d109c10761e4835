// The tuned constants of the thread pool, each with the reason for it. `python -m benchmarks busy` measures them: steps
// on the tutorial's MLP, back to back, also with processors kept busy by other processes.
#pragma once

#include <chrono>

namespace fusedoptim::cpu {

constexpr int kMaxThreads = 256;  // not tuned: what is kept for each lies on the caller's stack

// How long a caller spins for the end of a worker before it sleeps, and a worker for more work: waking takes longer
// than most of what is waited for. Without yielding, for a thread that yields is behind all others when there is work
// again, and takes no part in the step. A worker spins longer once no other thread has taken its processor for
// kUndisturbedJobs jobs: one that spins on uses up its slice, and loses the processor amid a job. With
// kLongSpin always, steps beside a busy process have a shorter median, but a longer mean.
constexpr auto kSpin = std::chrono::microseconds(20);
constexpr auto kLongSpin = std::chrono::microseconds(50);
constexpr int kUndisturbedJobs = 1024;

// A worker's time slice, the shortest that Linux gives: a thread that was woken goes before those that compute on for
// longer ones. Part of what was measured above, not measured alone.
constexpr auto kSlice = std::chrono::nanoseconds(100'000);

// A region of OpenMP that ends so much later than its caller's own work has stalled: a thread had to wait for a
// processor, which takes milliseconds, and a piece of work takes far less. The counts below are judgement: after
// kStallsAllowed stalls no region for kShortestPause runs, doubled up to kLongestPause; kGoodRuns without a stall take
// one back.
constexpr auto kStall = std::chrono::microseconds(200);
constexpr int kStallsAllowed = 3;
constexpr int kShortestPause = 512, kLongestPause = 16384;
constexpr int kGoodRuns = 256;

}  // namespace fusedoptim::cpu
