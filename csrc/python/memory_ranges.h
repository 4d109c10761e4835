// Whether different tensors of a step share memory, which decides the order in which they may be updated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fusedoptim::python {

// The stretches of memory that a step touches. In a steady loop they are the same step after step, and so is the
// answer: each is compared with what the last step had in its place, and only a change is looked into.
class Extents {
 public:
  void begin() { count_ = 0; }  // of a step
  void add(const char* begin, const char* end, bool is_grad) {
    if (begin == end) return;
    const Extent extent{begin, end, is_grad};
    if (count_ == extents_.size()) {
      extents_.push_back(extent);
      changed_ = true;
    } else if (!(extents_[count_] == extent)) {
      extents_[count_] = extent;
      changed_ = true;
    }
    ++count_;
  }
  // Whether two of them overlap and one of these is written.
  bool are_shared(bool grads_are_written);

 private:
  struct Extent {
    const char* begin;
    const char* end;
    bool is_grad;
    bool operator==(const Extent& o) const { return begin == o.begin && end == o.end && is_grad == o.is_grad; }
  };
  bool find_shared(bool grads_are_written);

  std::vector<Extent> extents_;
  size_t count_ = 0;
  bool changed_ = true;  // since the answer below was found
  bool grads_are_written_ = false, shared_ = false;
  std::vector<uint32_t> by_address_;
};

}  // namespace fusedoptim::python
