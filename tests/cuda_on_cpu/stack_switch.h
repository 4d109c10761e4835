// Leaves one stack for another and comes back later. By hand on x86-64, where ucontext would ask the kernel for the
// signal mask at every switch, which then is most of a test's time; through ucontext elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_on_cpu {

#if defined(__x86_64__)

// What a function must keep for its caller is on the stack; the stack pointer finds it again.
struct Suspended {
  void* stack_pointer;
};

extern "C" void cuda_on_cpu_switch_stack(void** leave_at, void* go_on_at);
asm(R"(
.pushsection .text
.weak cuda_on_cpu_switch_stack
.type cuda_on_cpu_switch_stack, @function
cuda_on_cpu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch_stack, . - cuda_on_cpu_switch_stack
.popsection
)");

inline void switch_stack(Suspended& leave, Suspended& go_on) {
  cuda_on_cpu_switch_stack(&leave.stack_pointer, go_on.stack_pointer);
}

// `entry` runs on the stack at the first switch to it, and must never return.
inline Suspended begin_stack(char* stack, size_t bytes, void (*entry)()) {
  constexpr int kKept = 6;  // registers that the switch pops
  auto** const top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t(15));
  top[-1] = nullptr;  // the return address of `entry`; below it lies the frame, aligned as a call would leave it
  top[-2] = reinterpret_cast<void*>(entry);
  for (int i = 1; i <= kKept; ++i) top[-2 - i] = nullptr;
  return {top - 2 - kKept};
}

#else

struct Suspended {
  ucontext_t context;
};

inline void switch_stack(Suspended& leave, Suspended& go_on) { swapcontext(&leave.context, &go_on.context); }

inline Suspended begin_stack(char* stack, size_t bytes, void (*entry)()) {
  Suspended begun;
  getcontext(&begun.context);
  begun.context.uc_stack.ss_sp = stack;
  begun.context.uc_stack.ss_size = bytes;
  makecontext(&begun.context, entry, 0);
  return begun;
}

#endif

}  // namespace cuda_on_cpu
