// The CPU driver: all tasks of a step in one parallel region.
#pragma once

#include <vector>

#include "core/task.h"
#include "cpu/instruction_set.h"

namespace fusedoptim::cpu {

struct Chunk {
  const Task* task;
  int64_t begin, count;
};

// All tasks of a step, split into chunks. Elements are independent, so the bits of the result depend neither on the
// split nor on the number of threads. All that can fail does so in `plan`, before anything is written.
class Schedule {
 public:
  void plan(const Task* tasks, size_t count, const RunOptions& options);  // `tasks` must outlive the run
  int64_t elements() const { return elements_; }
  void run(const InstructionSet& set) const noexcept;

 private:
  RunOptions options_;
  int threads_ = 1;
  int64_t elements_ = 0;
  std::vector<Chunk> chunks_;
  std::vector<size_t> units_;  // first chunk of each unit: many small tensors, or a part of a large one; and the end
};

// Writes zeros over the gradients of all tasks.
void zero_grads(const std::vector<Task>& tasks) noexcept;

// Writes zeros over contiguous memory, with several threads where that pays.
struct Span {
  void* data;
  int64_t bytes;
};
void zero(const std::vector<Span>& spans, int threads);

}  // namespace fusedoptim::cpu
