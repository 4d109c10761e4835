// How a test drives the stand-in for the CUDA runtime (stand_in_runtime.cpp), from Python by ctypes: plain C.
//
// Work on a stream waits in its queue until somebody waits for it, or `stand_in_finish` does: as on a device, and
// unlike on a CPU, a table that is overwritten too early is then seen to be.
#pragma once

#include <cstdint>

#if defined(__cplusplus)
extern "C" {
#endif

struct StandInLaunch {
  const char* kernel;  // its mangled name
  int32_t device;
  uint64_t stream;
  uint32_t blocks, threads;
};

void stand_in_reset(void);           // forgets records, failures and queued work
void stand_in_finish(void);          // runs all that is queued
void stand_in_set_eager(int eager);  // at the start it is
void stand_in_set_order(uint64_t seed);
uint64_t stand_in_new_stream(int device);

int stand_in_launch_count(void);  // since the last reset; launches of a graph count when it is replayed
StandInLaunch stand_in_launch(int number);
int stand_in_count(const char* what);  // "uploads", "waits", "pinned" and "allocated" (pieces alive)
const char* stand_in_fault(void);      // what a kernel did wrong, or ""

// Lets a function of the runtime ("cudaLaunchKernel") fail with a code, some times, after a number of calls that
// succeed.
void stand_in_fail(const char* function, int after, int code, int times);

void stand_in_begin_capture(uint64_t stream);
int stand_in_end_capture(uint64_t stream);  // the number of the graph
void stand_in_replay(int graph);
int stand_in_graph_size(int graph);  // operations in it

// Kernels of the module by number, with those that launches have named so far removed; null beyond the last.
const char* stand_in_kernel_never_launched(int number);

// ---- tensors that pose as lying on a device (posing.cpp) ----
// The table of torch's DLPack exchange, but that it shows objects on the devices on which they were placed here. Others
// lie on the default device if they have a dimension, else on the host. -1 is the host.
void* posing_table(void* torchs_table);
void posing_place(void* object, int device);
void posing_forget(void* object);
int posing_device(void* object, int dims);
void posing_set_default(int device);
void posing_set_stream(int device, uint64_t stream);  // torch's current one

#if defined(__cplusplus)
}
#endif
