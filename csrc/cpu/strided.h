// Moves blocks of elements between any layout and a contiguous scratch buffer, so that the one contiguous kernel
// serves every layout.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/task.h"

namespace fusedoptim::cpu {

// Calls `visit(i, offset)` for elements begin .. begin + count - 1 with the operand's offset in elements, in any order:
// rectangles of the last two dimensions are walked along the one whose elements lie closer together.
template <class Visit>
void for_each_offset(const Layout& layout, int operand, int64_t begin, int64_t count, Visit visit) {
  // Dimensions, the last first, of which those that continue one another are one.
  int64_t sizes[kMaxDims + 2], strides[kMaxDims + 2], index[kMaxDims + 2];
  const int64_t* const all = layout.strides + int64_t(operand) * layout.ndim;
  int dims = 0;
  for (int d = layout.ndim - 1; d >= 0; --d) {
    if (layout.sizes[d] == 1) continue;
    if (dims > 0 && all[d] == strides[dims - 1] * sizes[dims - 1]) {
      sizes[dims - 1] *= layout.sizes[d];
    } else {
      sizes[dims] = layout.sizes[d];
      strides[dims++] = all[d];
    }
  }
  for (; dims < 2; ++dims) sizes[dims] = 1, strides[dims] = 0;
  int64_t offset = 0;
  for (int64_t d = 0, left = begin; d < dims; ++d) {
    index[d] = left % sizes[d];
    left /= sizes[d];
    offset += index[d] * strides[d];
  }
  const int64_t width = sizes[0], along = strides[0], down = strides[1];
  for (int64_t i = 0; i < count;) {
    const bool whole = index[0] == 0 && count - i >= width;
    const int64_t rows = whole ? std::min(sizes[1] - index[1], (count - i) / width) : 1;
    const int64_t columns = whole ? width : std::min(width - index[0], count - i);
    if (std::abs(down) < std::abs(along)) {
      for (int64_t c = 0; c < columns; ++c) {
        for (int64_t r = 0; r < rows; ++r) visit(i + r * columns + c, offset + r * down + c * along);
      }
    } else {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < columns; ++c) visit(i + r * columns + c, offset + r * down + c * along);
      }
    }
    i += rows * columns;
    const int moved = whole ? 1 : 0;
    index[moved] += whole ? rows : columns;
    offset += whole ? rows * down : columns * along;
    for (int d = moved; d + 1 < dims && index[d] == sizes[d]; ++d) {
      offset += strides[d + 1] - index[d] * strides[d];
      index[d] = 0;
      ++index[d + 1];
    }
  }
}

// Copied as bytes: a tensor over memory of another library may be unaligned.
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
