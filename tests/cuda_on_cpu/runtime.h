// Runs the threads of a CUDA grid on one thread of the host: one fiber per CUDA thread, blocks one after another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>

namespace cuda_on_cpu {

struct Dim3 {
  uint32_t x, y, z;
};

// What would hang, trap or corrupt a device: a divergent barrier, an impossible launch.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// In which order blocks, and the threads of a block, run: 0 ascending, 1 descending, any other number shuffles.
void set_order(uint64_t seed);

// Calls `thread` once for each thread of the grid. Throws Fault.
void run_grid(Dim3 grid, Dim3 block, const std::function<void()>& thread);

// What follows is for the code of a thread.
Dim3 thread_index();
Dim3 block_index();
Dim3 block_size();
Dim3 grid_size();

void block_barrier();  // __syncthreads, bar.sync 0
void fence();          // __threadfence, membar.gl

// Among the threads of a warp, all of which must come here.
constexpr uint32_t kWarpThreads = 32;
void warp_barrier();                                         // __syncwarp, bar.warp.sync
uint32_t warp_exchange(uint32_t value, uint32_t lane_mask);  // __shfl_xor_sync, shfl.sync.bfly: that of lane ^ mask
uint32_t warp_maximum(uint32_t value);                       // __reduce_max_sync, redux.sync.max

// The block's shared memory for `key`, filled with 0xff when the block begins.
void* shared_memory(const void* key, size_t bytes);

// Order what the sanitizers see: a fence before an atomic releases, a fence after it acquires.
void before_atomic(const void* at);
void after_atomic(const void* at);

// One atomic read-modify-write; returns the old value.
template <class T, class F>
T atomic_update(T* at, F change) {
  T old, changed;
  before_atomic(at);
  __atomic_load(at, &old, __ATOMIC_RELAXED);
  do {
    changed = change(old);
  } while (!__atomic_compare_exchange(at, &old, &changed, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  after_atomic(at);
  return old;
}

}  // namespace cuda_on_cpu
