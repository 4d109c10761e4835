#include "python/memory_ranges.h"

#include <algorithm>
#include <numeric>

namespace fusedoptim::python {

bool MemoryRanges::overlap(bool grads_are_written) {
  if (count_ != ranges_.size()) {
    ranges_.resize(count_);
    changed_ = true;
  }
  if (changed_ || grads_are_written != grads_are_written_) {
    overlap_ = find_overlap(grads_are_written);
    grads_are_written_ = grads_are_written;
    changed_ = false;
  }
  return overlap_;
}

bool MemoryRanges::find_overlap(bool grads_are_written) {
  const auto by_begin = [this](uint32_t a, uint32_t b) { return ranges_[a].begin < ranges_[b].begin; };
  if (by_address_.size() != ranges_.size()) {
    by_address_.resize(ranges_.size());
    std::iota(by_address_.begin(), by_address_.end(), 0u);
  }
  if (!std::is_sorted(by_address_.begin(), by_address_.end(), by_begin)) {
    std::sort(by_address_.begin(), by_address_.end(), by_begin);
  }
  // In this order a range overlaps an earlier one if it begins before the furthest end so far; one of the two must be
  // written for the order of updates to matter.
  const char *end = nullptr, *written_end = nullptr;
  for (const uint32_t i : by_address_) {
    const Range& range = ranges_[i];
    const bool written = grads_are_written || !range.is_grad;
    if (range.begin < (written ? end : written_end)) return true;
    end = std::max(end, range.end);
    if (written) written_end = std::max(written_end, range.end);
  }
  return false;
}

}  // namespace fusedoptim::python
