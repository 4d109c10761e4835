#include "python/memory_ranges.h"

#include <algorithm>
#include <numeric>

namespace fusedoptim::python {

bool Extents::are_shared(bool grads_are_written) {
  if (count_ != extents_.size()) {
    extents_.resize(count_);
    changed_ = true;
  }
  if (changed_ || grads_are_written != grads_are_written_) {
    shared_ = find_shared(grads_are_written);
    grads_are_written_ = grads_are_written;
    changed_ = false;
  }
  return shared_;
}

bool Extents::find_shared(bool grads_are_written) {
  const auto by_begin = [this](uint32_t a, uint32_t b) { return extents_[a].begin < extents_[b].begin; };
  if (by_address_.size() != extents_.size()) {
    by_address_.resize(extents_.size());
    std::iota(by_address_.begin(), by_address_.end(), 0u);
  }
  if (!std::is_sorted(by_address_.begin(), by_address_.end(), by_begin)) {
    std::sort(by_address_.begin(), by_address_.end(), by_begin);
  }
  // In this order an extent overlaps an earlier one if it begins before the furthest end so far; one of the two must be
  // written for the order of updates to matter.
  const char *end = nullptr, *written_end = nullptr;
  for (const uint32_t i : by_address_) {
    const Extent& extent = extents_[i];
    const bool written = grads_are_written || !extent.is_grad;
    if (extent.begin < (written ? end : written_end)) return true;
    end = std::max(end, extent.end);
    if (written) written_end = std::max(written_end, extent.end);
  }
  return false;
}

}  // namespace fusedoptim::python
