// Whether different tensors of a step share memory, which decides the order in which they may be updated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rules/rule.h"

namespace fusedoptim::python {

// The ranges of memory that a step touches. In a steady loop they are the same step after step, and so is the answer:
// each is compared with what the last step had in its place, and only a change is looked into.
class MemoryRanges {
 public:
  void begin() { count_ = 0; }  // of a step
  FUSEDOPTIM_INLINE void add(const char* begin, const char* end, bool is_grad) {
    if (begin == end) return;
    const Range range{begin, end, is_grad};
    if (count_ == ranges_.size()) {
      ranges_.push_back(range);
      changed_ = true;
    } else if (!(ranges_[count_] == range)) {
      ranges_[count_] = range;
      changed_ = true;
    }
    ++count_;
  }
  // Whether two of them overlap and one of these is written.
  bool overlap(bool grads_are_written);

 private:
  struct Range {
    const char* begin;
    const char* end;
    bool is_grad;
    bool operator==(const Range& o) const { return begin == o.begin && end == o.end && is_grad == o.is_grad; }
  };
  bool find_overlap(bool grads_are_written);

  std::vector<Range> ranges_;
  size_t count_ = 0;
  bool changed_ = true;  // since the answer below was found
  bool grads_are_written_ = false, overlap_ = false;
  std::vector<uint32_t> by_address_;
};

}  // namespace fusedoptim::python
