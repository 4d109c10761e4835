// Moves blocks of elements between any layout and a contiguous scratch buffer, so that the one contiguous kernel
// serves every layout.
#pragma once

#include <cstring>

#include "core/task.h"

namespace fusedoptim::cpu {

// Calls `visit(i, offset)` for elements begin .. begin + count - 1 with the operand's offset in elements.
template <class Visit>
void for_each_offset(const Layout& layout, int operand, int64_t begin, int64_t count, Visit visit) {
  int64_t index[kMaxDims];
  const int64_t* strides = layout.strides + int64_t(operand) * layout.ndim;
  int64_t offset = 0;
  for (int d = layout.ndim - 1; d >= 0; --d) {
    index[d] = begin % layout.sizes[d];
    begin /= layout.sizes[d];
    offset += index[d] * strides[d];
  }
  for (int64_t i = 0; i < count; ++i) {
    visit(i, offset);
    for (int d = layout.ndim - 1; d >= 0; --d) {
      offset += strides[d];
      if (++index[d] < layout.sizes[d]) break;
      offset -= index[d] * strides[d];
      index[d] = 0;
    }
  }
}

// Copied as bytes, for a tensor over foreign memory may begin at any byte.
template <class Element>
void gather(const Layout& layout, int operand, const Element* from, int64_t begin, int64_t count, Element* to) {
  for_each_offset(layout, operand, begin, count,
                  [&](int64_t i, int64_t at) { std::memcpy(to + i, from + at, sizeof(Element)); });
}

template <class Element>
void scatter(const Layout& layout, int operand, Element* to, int64_t begin, int64_t count, const Element* from) {
  for_each_offset(layout, operand, begin, count,
                  [&](int64_t i, int64_t at) { std::memcpy(to + at, from + i, sizeof(Element)); });
}

}  // namespace fusedoptim::cpu
