#include "cpu/grads.h"

#include <algorithm>

#include "core/sum.h"
#include "cpu/parallel.h"
#include "cpu/strided.h"

namespace fusedoptim::cpu {
namespace {

constexpr int64_t kPieceUnits = 4;     // that a thread claims at once
constexpr int64_t kPerThread = 65536;  // elements below which another thread costs more than it brings

struct Unit {
  const Grad* grad;
  int64_t begin, count;
};

std::vector<Unit> units_of(const std::vector<Grad>& grads) {
  std::vector<Unit> units;
  for (const Grad& grad : grads) {
    for (int64_t at = 0; at < grad.count; at += kSumUnit) {
      units.push_back({&grad, at, std::min(kSumUnit, grad.count - at)});
    }
  }
  return units;
}

// Calls `work(unit, i)` for each, from several threads where that pays.
template <class Work>
void for_each(const std::vector<Unit>& units, int threads, const Work& work) {
  int64_t elements = 0;
  for (const Unit& unit : units) elements += unit.count;
  threads = int(std::clamp<int64_t>(elements / kPerThread, 1, std::max(threads, 1)));
  const int64_t count = int64_t(units.size());
  // Many small gradients lie in one piece.
  const int64_t in_piece =
      std::max<int64_t>(kPieceUnits, elements == 0 ? 1 : kPieceUnits * kSumUnit * count / elements);
  parallel_for((count + in_piece - 1) / in_piece, threads, false, [&](int64_t piece) {
    for (int64_t i = piece * in_piece; i < std::min(count, (piece + 1) * in_piece); ++i) work(units[i], i);
  });
}

// Calls `work(memory)` on the elements of a unit side by side, in a buffer where they do not lie so; `written`: and
// back.
template <class Element, class Work>
void with_elements(const Unit& unit, bool written, const Work& work) {
  Element* const data = static_cast<Element*>(unit.grad->data);
  if (unit.grad->layout == nullptr) return work(data + unit.begin);
  Element buffer[kSumUnit];
  gather(*unit.grad->layout, 0, data, unit.begin, unit.count, buffer);
  work(buffer);
  if (written) scatter(*unit.grad->layout, 0, data, unit.begin, unit.count, buffer);
}

template <class Work>
void with_memory(const Unit& unit, bool written, const Work& work) {
  switch (size_of(unit.grad->dtype)) {
    case 8:
      return with_elements<uint64_t>(unit, written, work);
    case 4:
      return with_elements<uint32_t>(unit, written, work);
    default:
      return with_elements<uint16_t>(unit, written, work);
  }
}

// The sum of each gradient, where `work(unit, sum)` finds that of a unit.
template <class Work>
void sum_units(const std::vector<Grad>& grads, int threads, double* sums, const Work& work) {
  const std::vector<Unit> units = units_of(grads);
  std::vector<double> of_units(units.size());
  for_each(units, threads, [&](const Unit& unit, int64_t i) { work(unit, of_units[i]); });
  const double* at = of_units.data();
  for (const Grad& grad : grads) {
    const int64_t count = (grad.count + kSumUnit - 1) / kSumUnit;
    *sums++ = ordered_sum(at, count);
    at += count;
  }
}

}  // namespace

void sum_squares(const std::vector<Grad>& grads, const double* grad_scale, int threads, const InstructionSet& set,
                 double* sums) {
  sum_units(grads, threads, sums, [&](const Unit& unit, double& sum) {
    const int dtype = int(unit.grad->dtype);
    with_memory(unit, false, [&](const void* memory) {
      if (grad_scale == nullptr) {
        sum = set.squares[dtype](memory, unit.count);
      } else {
        alignas(64) char unscaled[kSumUnit * sizeof(double)];
        std::memcpy(unscaled, memory, size_t(unit.count) * size_of(unit.grad->dtype));
        set.unscale[dtype](unscaled, 0, unit.count, *grad_scale);
        sum = set.squares[dtype](unscaled, unit.count);
      }
    });
  });
}

void unscale(const std::vector<Grad>& grads, double grad_scale, int threads, const InstructionSet& set, double* sums) {
  sum_units(grads, threads, sums, [&](const Unit& unit, double& sum) {
    const int dtype = int(unit.grad->dtype);
    with_memory(unit, true, [&](void* memory) {
      set.unscale[dtype](memory, 0, unit.count, grad_scale);
      sum = set.squares[dtype](memory, unit.count);
    });
  });
}

void sum_beginnings(const std::vector<Grad>& grads, int threads, const InstructionSet& set, double* sums) {
  std::vector<Unit> units;
  for (const Grad& grad : grads) units.push_back({&grad, 0, std::min(kSumUnit, grad.count)});
  for_each(units, threads, [&](const Unit& unit, int64_t i) {
    with_memory(unit, false,
                [&](const void* memory) { sums[i] = set.squares[int(unit.grad->dtype)](memory, unit.count); });
  });
}

void scale(const std::vector<Grad>& grads, double factor, int threads, const InstructionSet& set) {
  for_each(units_of(grads), threads, [&](const Unit& unit, int64_t) {
    with_memory(unit, true,
                [&](void* memory) { set.scale[int(unit.grad->dtype)](memory, memory, unit.count, factor); });
  });
}

}  // namespace fusedoptim::cpu
