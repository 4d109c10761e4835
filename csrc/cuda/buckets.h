// Which tasks share a launch, and the tables that the kernels read of them.
#pragma once

#include <vector>

#include "cuda/norm_launch.h"
#include "cuda/tables.h"

namespace fusedoptim::cuda {

Format format_of(const Task& task, int operand);

// Tasks that one launch serves, and their rows.
struct Bucket {
  const Task* first;
  const DeviceRun* run;
  std::vector<Row> rows;
  std::vector<int64_t> layouts;

  bool takes(const Task& task) const;  // whether it differs from the bucket's only in its memory
  void add(const Task& task);
};

// Append a table's contents.
Shape write_step_table(const std::vector<Row>& rows, const std::vector<int64_t>& layouts, std::vector<char>& out);
Shape write_zero_table(const std::vector<ZeroSpan>& spans, std::vector<char>& out);
Shape write_norm_table(const std::vector<NormRow>& rows, const std::vector<int64_t>& layouts, std::vector<char>& out);

}  // namespace fusedoptim::cuda
