// The CUDA driver: one launch for all tasks of a step that differ only in their memory. This header includes none of
// CUDA's, so that a build without CUDA has only this and none.cpp.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/task.h"

namespace fusedoptim::cuda {

// A call of the CUDA runtime that failed; the text names what was being done.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The device's memory is full, or cached by torch's allocator.
struct OutOfMemory : Error {
  using Error::Error;
};

bool built();  // whether this build has kernels

// What a step finds on one device. Both numbers are float32 there; null where there is none.
struct DeviceRun {
  int device;
  void* stream;  // torch's current one
  const float* found_inf = nullptr;
  const float* grad_scale = nullptr;
  bool capturing = false;  // for a CUDA graph
};

// Memory to be zeroed on a device.
struct Span {
  int device;
  char* data;
  int64_t bytes;
};

// Belongs to one optimizer, and keeps the tables that its kernels read between steps. A step waits for a device only
// where a table must move to more memory, and a capture for the table of its graph. Python's lock is not needed.
class Driver {
 public:
  Driver();
  ~Driver();

  // Why the kernels cannot run on a device, or null. Throws if the cause may pass.
  const char* problem(int device);

  // Whether work on the stream is being captured for a CUDA graph.
  bool is_capturing(int device, void* stream);

  // Makes everything ready for `launch`: all that needs memory is done here, nothing is run. `tasks` and what they
  // point to must live until then. `in_order`: one task after the other, as memory that they share demands.
  void prepare(const std::vector<Task>& tasks, const std::vector<DeviceRun>& runs, bool zero_grad, bool in_order);
  void prepare_zero(const std::vector<Span>& spans, const std::vector<DeviceRun>& runs);

  // Queues the kernels. When a launch fails, those before it have been made; the text says so.
  void launch();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fusedoptim::cuda
