#include "runtime.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "sanitizers.h"
#include "stack_switch.h"

namespace cuda_on_cpu {
namespace {

constexpr uint32_t kMaxBlockThreads = 1024;
constexpr Dim3 kMaxBlock{1024, 1024, 64}, kMaxGrid{0x7fffffff, 65535, 65535};

// ---- memory that ThreadSanitizer has no opinion about --------------------------------------------------------------
// By the system call itself, which ThreadSanitizer does not see: else it would take the memory for one that the calling
// thread has written. Unmapped by libc's munmap, which it does see, and then forgets all accesses.
char* map_memory(size_t bytes) {
  const long at =
      syscall(SYS_mmap, nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == -1) throw std::bad_alloc();
  return reinterpret_cast<char*>(at);
}

// The stacks of threads, each above a page that faults.
class Stacks {
 public:
  static constexpr size_t kBytes = 64 * 1024;

  ~Stacks() { clear(); }

  char* at(size_t thread) { return memory_ + thread * kStride + kGuard; }

  void grow_to(size_t threads) {
    if (threads <= threads_) return;
    clear();
    memory_ = map_memory(threads * kStride);
    threads_ = threads;
    for (size_t i = 0; i < threads; ++i) mprotect(memory_ + i * kStride, kGuard, PROT_NONE);
  }

  void clear() {
    if (memory_ == nullptr) return;
    forget_frames(memory_, threads_ * kStride);
    munmap(memory_, threads_ * kStride);
    memory_ = nullptr;
    threads_ = 0;
  }

 private:
  static constexpr size_t kGuard = 4096, kStride = kGuard + kBytes;
  char* memory_ = nullptr;
  size_t threads_ = 0;
};

// One `__shared__` variable of the block that runs.
class SharedVariable {
 public:
  SharedVariable(const void* key, size_t bytes) : key_(key), bytes_(bytes), memory_(allocate(bytes)) {
    // Through volatile, as memset would be intercepted and count as an access of this thread.
    for (size_t i = 0; i < bytes; ++i) static_cast<volatile unsigned char*>(memory_)[i] = 0xff;
  }
  ~SharedVariable() { release_memory(); }
  SharedVariable(const SharedVariable&) = delete;

  const void* key() const { return key_; }
  size_t bytes() const { return bytes_; }
  void* memory() const { return memory_; }

 private:
#if defined(CUDA_ON_CPU_TSAN)
  static constexpr size_t kPage = 4096;  // else munmap leaves ThreadSanitizer with what it knows of the rest of it
  static void* allocate(size_t bytes) { return map_memory((bytes + kPage - 1) / kPage * kPage); }
  void release_memory() { munmap(memory_, (bytes_ + kPage - 1) / kPage * kPage); }
#else
  // On the heap, where AddressSanitizer sees the first byte beyond.
  static void* allocate(size_t bytes) { return std::malloc(bytes); }
  void release_memory() { std::free(memory_); }
#endif

  const void* key_;
  size_t bytes_;
  void* memory_;
};

// What ThreadSanitizer takes for threads. No two threads of a grid are the same to it, or a race between them would
// look like two accesses of one; but it knows at most some 8000, so in a grid beyond that they are used again. Those of
// one grid serve the next, since grids are ordered and each takes most of a millisecond to make.
class WatchedThreads {
 public:
  void begin_grid() { used_ = 0; }

  // The number of the next.
  size_t next() {
    const size_t i = used_++ % kMost;
    if (i == threads_.size()) threads_.push_back(begin_watched_thread());
    return i;
  }

  void* at(size_t i) const { return threads_[i]; }

  void clear() {
    for (void* thread : threads_) end_watched_thread(thread);
    threads_.clear();
  }

 private:
  static constexpr size_t kMost = 6000;
  std::vector<void*> threads_;
  size_t used_ = 0;
};

// ---- a thread, a block, a grid -------------------------------------------------------------------------------------
enum class Waits { kForNothing, kForItsWarp, kForTheBlock };

struct Thread {
  Suspended suspended;
  bool has_exited;
  Waits waits;
  uint32_t warp_barriers;  // that it has come to
  uint32_t exchanged[2];   // with its warp, at barriers of even and odd number
  Dim3 index;
  char* stack;
  void* frames;                      // AddressSanitizer's, while suspended
  void* watched;                     // ThreadSanitizer's
  bool has_fenced;                   // so its atomics release
  std::vector<const void*> atomics;  // that its next fence acquires
};

// Everything there is but once, as there is one OS thread. Only run_grid's own functions change it.
struct Grid {
  uint64_t seed = 0;
  const std::function<void()>* code;
  Dim3 size, block_size;

  Dim3 block;
  std::vector<Thread> threads;
  std::vector<std::unique_ptr<SharedVariable>> shared;
  Thread* running = nullptr;
  std::exception_ptr thrown;  // by a thread
  const char* barriers;       // what barriers release and acquire: the block's two, then two of each warp
  uint64_t block_barriers;    // that were passed

  Suspended scheduler;
  void* scheduler_watched;
  void* scheduler_frames;
  const void* scheduler_stack;
  size_t scheduler_bytes;

  Stacks stacks;
  WatchedThreads watched;
  char begin, end;  // released and acquired
} grid;

std::string text(Dim3 d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

uint64_t volume(Dim3 d) { return uint64_t(d.x) * d.y * d.z; }

Dim3 place(uint64_t number, Dim3 size) {
  return {uint32_t(number % size.x), uint32_t(number / size.x % size.y), uint32_t(number / size.x / size.y)};
}

void check_launch(Dim3 size, Dim3 block) {
  const auto within = [](Dim3 d, Dim3 most) {
    return d.x >= 1 && d.y >= 1 && d.z >= 1 && d.x <= most.x && d.y <= most.y && d.z <= most.z;
  };
  if (!within(size, kMaxGrid)) throw Fault("impossible grid " + text(size));
  if (!within(block, kMaxBlock) || volume(block) > kMaxBlockThreads) throw Fault("impossible block " + text(block));
}

// ---- switching -----------------------------------------------------------------------------------------------------
void resume(Thread& thread) {
  grid.running = &thread;
  before_switch(&grid.scheduler_frames, thread.stack, Stacks::kBytes);
  switch_watched_thread(thread.watched);
  switch_stack(grid.scheduler, thread.suspended);
  after_switch(grid.scheduler_frames);
}

// Goes back to the scheduler, and returns when the thread is resumed.
void suspend() {
  Thread& thread = *grid.running;
  before_switch(thread.has_exited ? nullptr : &thread.frames, grid.scheduler_stack, grid.scheduler_bytes);
  switch_watched_thread(grid.scheduler_watched);
  switch_stack(thread.suspended, grid.scheduler);
  after_switch(thread.frames, &grid.scheduler_stack, &grid.scheduler_bytes);
}

void thread_entry() {
  after_switch(nullptr, &grid.scheduler_stack, &grid.scheduler_bytes);
  acquire(&grid.begin);
  try {
    (*grid.code)();
  } catch (...) {
    grid.thrown = std::current_exception();
  }
  release(&grid.end);
  grid.running->has_exited = true;
  suspend();
}

// While a thread runs, what the runtime does in its own interest is not the thread's doing: else ThreadSanitizer would
// report the memory that it allocates here and frees elsewhere.
class AsScheduler {
 public:
  AsScheduler() { switch_watched_thread(grid.scheduler_watched); }
  ~AsScheduler() { switch_watched_thread(grid.running->watched); }
  AsScheduler(const AsScheduler&) = delete;
};

// ---- running -------------------------------------------------------------------------------------------------------
template <class Number>
std::vector<Number> numbers_in_order(Number count, std::minstd_rand& random) {
  std::vector<Number> numbers(count);
  std::iota(numbers.begin(), numbers.end(), Number(0));
  if (grid.seed == 1) std::reverse(numbers.begin(), numbers.end());
  if (grid.seed > 1) std::shuffle(numbers.begin(), numbers.end(), random);
  return numbers;
}

void begin_block(Dim3 block) {
  const size_t count = volume(grid.block_size);
  grid.block = block;
  grid.threads.resize(count);
  std::vector<size_t> stacks(count);
  for (size_t i = 0; i < count; ++i) {
    const size_t watched = grid.watched.next();
    grid.threads[i].watched = grid.watched.at(watched);
#if defined(CUDA_ON_CPU_TSAN)
    stacks[i] = watched;  // its own, as a block's frames must not meet accesses to those of another
#else
    stacks[i] = i;
#endif
  }
  grid.stacks.grow_to(*std::max_element(stacks.begin(), stacks.end()) + 1);
  for (size_t i = 0; i < count; ++i) {
    Thread& thread = grid.threads[i];
    thread.stack = grid.stacks.at(stacks[i]);
    thread.suspended = begin_stack(thread.stack, Stacks::kBytes, thread_entry);
    thread.has_exited = false;
    thread.waits = Waits::kForNothing;
    thread.warp_barriers = 0;
    thread.index = place(i, grid.block_size);
    thread.has_fenced = false;
    thread.atomics.clear();
  }
}

// `given_up`: with threads that have not exited.
void end_block(bool given_up) {
  grid.running = nullptr;
  grid.shared.clear();
  if (given_up) grid.stacks.clear();
}

// Consecutive barriers of a block, or of a warp, take turns with two addresses, else a thread that has just passed one
// would acquire what another did on its way to the next. No two of them share one, as nothing orders them.
constexpr int kBarriers = 2;
size_t barriers_of(Dim3 block) { return kBarriers * (1 + (volume(block) + kWarpThreads - 1) / kWarpThreads); }

// Lets those go on all of whom have come; whether there are any.
bool open_barriers() {
  std::vector<Thread>& threads = grid.threads;
  const auto all_wait = [](auto begin, auto end, Waits barrier) {
    return std::all_of(begin, end, [=](const Thread& t) { return !t.has_exited && t.waits == barrier; });
  };
  const auto go_on = [](auto begin, auto end) {
    for (; begin != end; ++begin) begin->waits = Waits::kForNothing;
  };
  bool any = all_wait(threads.begin(), threads.end(), Waits::kForTheBlock);
  if (any) go_on(threads.begin(), threads.end());
  for (size_t first = 0; first < threads.size(); first += kWarpThreads) {
    const auto begin = threads.begin() + long(first),
               end = begin + long(std::min<size_t>(kWarpThreads, threads.size() - first));
    if (!all_wait(begin, end, Waits::kForItsWarp)) continue;
    go_on(begin, end);
    any = true;
  }
  return any;
}

void run_block(const char* barriers, std::minstd_rand& random) {
  std::vector<uint32_t> order = numbers_in_order(uint32_t(grid.threads.size()), random);
  grid.barriers = barriers;
  grid.block_barriers = 0;
  for (;;) {
    for (const uint32_t i : order) {
      if (grid.threads[i].has_exited || grid.threads[i].waits != Waits::kForNothing) continue;
      resume(grid.threads[i]);
      if (grid.thrown) std::rethrow_exception(std::exchange(grid.thrown, nullptr));
    }
    const auto exited = size_t(std::count_if(grid.threads.begin(), grid.threads.end(),
                                             [](const Thread& thread) { return thread.has_exited; }));
    if (exited == grid.threads.size()) return;
    const bool block_waits = grid.threads[0].waits == Waits::kForTheBlock;
    if (!open_barriers()) {
      throw Fault("divergent barrier in block " + text(grid.block) + ": " +
                  std::to_string(grid.threads.size() - exited) + " threads wait, " + std::to_string(exited) +
                  " have exited");
    }
    if (block_waits && grid.threads[0].waits == Waits::kForNothing) ++grid.block_barriers;
    if (grid.seed > 1) std::shuffle(order.begin(), order.end(), random);
  }
}

}  // namespace

void set_order(uint64_t seed) { grid.seed = seed; }

void run_grid(Dim3 size, Dim3 block, const std::function<void()>& thread) {
  check_launch(size, block);
  grid.code = &thread;
  grid.size = size;
  grid.block_size = block;
  grid.scheduler_watched = current_watched_thread();
  release(&grid.begin);
  grid.watched.begin_grid();
  std::minstd_rand random(uint32_t(grid.seed + 1));
  const size_t of_block = barriers_of(block);
  const std::vector<char> barriers(volume(size) * of_block);
  try {
    for (const uint64_t number : numbers_in_order(volume(size), random)) {
      begin_block(place(number, size));
      run_block(&barriers[number * of_block], random);
      end_block(false);
    }
  } catch (...) {
    end_block(true);
    grid.watched.clear();
    throw;
  }
  acquire(&grid.end);
}

Dim3 thread_index() { return grid.running->index; }
Dim3 block_index() { return grid.block; }
Dim3 block_size() { return grid.block_size; }
Dim3 grid_size() { return grid.size; }

void block_barrier() {
  const char* const barrier = grid.barriers + grid.block_barriers % kBarriers;  // by the time it opens, the next counts
  release(barrier);
  grid.running->waits = Waits::kForTheBlock;
  suspend();
  acquire(barrier);
}

namespace {

size_t running() { return size_t(grid.running - grid.threads.data()); }

// Which of the two is next for a thread, as is its place for what it exchanges: whoever writes there again has passed
// the barrier after this one, and so have all who read.
uint32_t next_of_two(const Thread& thread) { return thread.warp_barriers % kBarriers; }

}  // namespace

void warp_barrier() {
  Thread& thread = *grid.running;
  const char* const barrier = grid.barriers + kBarriers * (1 + running() / kWarpThreads) + next_of_two(thread);
  release(barrier);
  thread.waits = Waits::kForItsWarp;
  ++thread.warp_barriers;
  suspend();
  acquire(barrier);
}

uint32_t warp_exchange(uint32_t value, uint32_t lane_mask) {
  const uint32_t place = next_of_two(*grid.running);
  grid.running->exchanged[place] = value;
  warp_barrier();
  return grid.threads[running() ^ lane_mask].exchanged[place];
}

uint32_t warp_maximum(uint32_t value) {
  const uint32_t place = next_of_two(*grid.running);
  grid.running->exchanged[place] = value;
  warp_barrier();
  const size_t first = running() / kWarpThreads * kWarpThreads;
  uint32_t most = 0;
  for (size_t i = first; i < std::min(first + kWarpThreads, grid.threads.size()); ++i) {
    most = std::max(most, grid.threads[i].exchanged[place]);
  }
  return most;
}

void fence() {
  Thread& thread = *grid.running;
  thread.has_fenced = true;
  for (const void* at : thread.atomics) acquire(at);
}

void before_atomic(const void* at) {
  if (grid.running->has_fenced) release(at);
}

void after_atomic(const void* at) {
  const AsScheduler own;
  std::vector<const void*>& atomics = grid.running->atomics;
  if (std::find(atomics.begin(), atomics.end(), at) == atomics.end()) atomics.push_back(at);
}

void* shared_memory(const void* key, size_t bytes) {
  for (const auto& variable : grid.shared) {
    if (variable->key() != key) continue;
    if (variable->bytes() != bytes) throw Fault("one shared variable of two sizes");
    return variable->memory();
  }
  const AsScheduler own;
  grid.shared.push_back(std::make_unique<SharedVariable>(key, bytes));
  return grid.shared.back()->memory();
}

}  // namespace cuda_on_cpu
