// What the sanitizers must be told of fibers. Nothing where no sanitizer is on.
//
// CUDA_ON_CPU_ASAN and CUDA_ON_CPU_TSAN say what the kernels are compiled with. The runtime itself is compiled with
// neither -fsanitize, so that only the accesses of kernels are watched.
#pragma once

#include <cstddef>
#if defined(CUDA_ON_CPU_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(CUDA_ON_CPU_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

namespace cuda_on_cpu {

// What happened before a release happens before what follows an acquire of the same address.
inline void release([[maybe_unused]] const void* address) {
#if defined(CUDA_ON_CPU_TSAN)
  __tsan_release(const_cast<void*>(address));
#endif
}

inline void acquire([[maybe_unused]] const void* address) {
#if defined(CUDA_ON_CPU_TSAN)
  __tsan_acquire(const_cast<void*>(address));
#endif
}

// AddressSanitizer asks where the stack lies that is switched to. A null `keep` says that the one left has ended.
inline void before_switch([[maybe_unused]] void** keep, [[maybe_unused]] const void* stack,
                          [[maybe_unused]] size_t bytes) {
#if defined(CUDA_ON_CPU_ASAN)
  __sanitizer_start_switch_fiber(keep, stack, bytes);
#endif
}

inline void after_switch([[maybe_unused]] void* kept, [[maybe_unused]] const void** left = nullptr,
                         [[maybe_unused]] size_t* left_bytes = nullptr) {
#if defined(CUDA_ON_CPU_ASAN)
  __sanitizer_finish_switch_fiber(kept, left, left_bytes);
#endif
}

// Forgets the redzones of frames that were never left, because their threads were given up.
inline void forget_frames([[maybe_unused]] void* stack, [[maybe_unused]] size_t bytes) {
#if defined(CUDA_ON_CPU_ASAN)
  __asan_unpoison_memory_region(stack, bytes);
#endif
}

// ThreadSanitizer takes each fiber for a thread.
#if defined(CUDA_ON_CPU_TSAN)
inline void* current_watched_thread() { return __tsan_get_current_fiber(); }
inline void* begin_watched_thread() { return __tsan_create_fiber(0); }
inline void end_watched_thread(void* thread) { __tsan_destroy_fiber(thread); }
inline void switch_watched_thread(void* thread) {
  constexpr unsigned kWithoutOrder = 1;  // the switch itself orders nothing
  __tsan_switch_to_fiber(thread, kWithoutOrder);
}
#else
inline void* current_watched_thread() { return nullptr; }
inline void* begin_watched_thread() { return nullptr; }
inline void end_watched_thread(void*) {}
inline void switch_watched_thread(void*) {}
#endif

}  // namespace cuda_on_cpu
