#include "cpu/grads.h"

#include <algorithm>

#include "core/sum.h"
#include "cpu/pool/parallel_for.h"
#include "cpu/strided.h"

namespace fusedoptim::cpu {
namespace {

constexpr int64_t kPerThread = 65536;     // elements below which another thread costs more than it brings
constexpr int64_t kFromMemory = 1 << 21;  // elements of which hardly any are in the second-level caches
// Units that a thread claims at once: many, as long as each thread has about kPieces claims to make.
constexpr int64_t kMinUnits = 4, kMaxUnits = 64, kPieces = 16;

struct Unit {
  const Grad* grad;
  int64_t begin, count;

  bool is_plain() const { return grad->layout == nullptr; }
  const char* data() const { return static_cast<const char*>(grad->data) + begin * int64_t(size_of(grad->dtype)); }
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

// Calls `work(i, end)` for ranges of units, from several threads where that pays.
template <class Work>
void for_ranges(const std::vector<Unit>& units, int threads, const Work& work) {
  int64_t elements = 0;
  for (const Unit& unit : units) elements += unit.count;
  threads = int(std::clamp<int64_t>(elements / kPerThread, 1, std::max(threads, 1)));
  const int64_t count = int64_t(units.size());
  // Many small gradients lie in one piece.
  const int64_t least = elements == 0 ? 1 : kMinUnits * kSumUnit * count / elements;
  const int64_t in_piece = std::max(least, std::clamp(count / (threads * kPieces), kMinUnits, kMaxUnits));
  parallel_for((count + in_piece - 1) / in_piece, threads, false,
               [&](int64_t piece) { work(piece * in_piece, std::min(count, (piece + 1) * in_piece)); });
}

template <class Work>
void for_each(const std::vector<Unit>& units, int threads, const Work& work) {
  for_ranges(units, threads, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) work(units[i], i);
  });
}

// Calls `work(memory)` on the contiguous elements of a unit: in place, or in a buffer, which is copied back if
// `written`.
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

// The sum of each gradient, where `work(i, end, sums)` finds those of units.
template <class Work>
void sum_units(const std::vector<Grad>& grads, const std::vector<Unit>& units, int threads, double* sums,
               const Work& work) {
  std::vector<double> of_units(units.size());
  for_ranges(units, threads, [&](int64_t i, int64_t end) { work(i, end, of_units.data()); });
  const double* at = of_units.data();
  for (const Grad& grad : grads) {
    const int64_t count = (grad.count + kSumUnit - 1) / kSumUnit;
    *sums++ = ordered_sum(at, count);
    at += count;
  }
}

bool are_abreast(const Unit* units) {
  return std::all_of(units, units + kAbreast, [&](const Unit& unit) {
    return unit.is_plain() && unit.count == kSumUnit && unit.grad->dtype == units->grad->dtype;
  });
}

}  // namespace

void sum_squares(const std::vector<Grad>& grads, const double* grad_scale, int threads, const InstructionSet& set,
                 double* sums) {
  const std::vector<Unit> units = units_of(grads);
  const double reciprocal = grad_scale == nullptr ? 1 : exact_reciprocal(*grad_scale);
  // In the caches one unit after the other is faster, since it takes fewer stores.
  const bool from_memory = int64_t(units.size()) * kSumUnit >= kFromMemory;
  const auto one = [&](const Unit& unit) {
    const int dtype = int(unit.grad->dtype);
    double sum;
    with_memory(unit, false, [&](const void* memory) {
      alignas(64) char unscaled[kSumUnit * sizeof(double)];
      if (grad_scale != nullptr) set.passes.unscale[dtype](memory, unscaled, unit.count, *grad_scale);
      sum = set.passes.squares[dtype](grad_scale == nullptr ? memory : unscaled, unit.count);
    });
    return sum;
  };
  sum_units(grads, units, threads, sums, [&](int64_t i, int64_t end, double* of_units) {
    while (i < end) {
      const DType dtype = units[i].grad->dtype;
      const bool may_be = from_memory && (grad_scale == nullptr || (reciprocal != 0 && dtype == DType::f32));
      if (may_be && end - i >= kAbreast && are_abreast(&units[i])) {
        const void* data[kAbreast];
        for (int u = 0; u < kAbreast; ++u) data[u] = units[i + u].data();
        set.passes.squares_abreast[int(dtype)](data, reciprocal, of_units + i);
        i += kAbreast;
      } else {
        of_units[i] = one(units[i]);
        ++i;
      }
    }
  });
}

void unscale(const std::vector<Grad>& grads, double grad_scale, int threads, const InstructionSet& set, double* sums) {
  const std::vector<Unit> units = units_of(grads);
  sum_units(grads, units, threads, sums, [&](int64_t i, int64_t end, double* of_units) {
    for (; i < end; ++i) {
      const Unit& unit = units[i];
      const int dtype = int(unit.grad->dtype);
      with_memory(unit, true, [&](void* memory) {
        set.passes.unscale[dtype](memory, memory, unit.count, grad_scale);
        of_units[i] = set.passes.squares[dtype](memory, unit.count);
      });
    }
  });
}

void sum_beginnings(const std::vector<Grad>& grads, int threads, const InstructionSet& set, double* sums) {
  std::vector<Unit> units;
  for (const Grad& grad : grads) units.push_back({&grad, 0, std::min(kSumUnit, grad.count)});
  for_each(units, threads, [&](const Unit& unit, int64_t i) {
    with_memory(unit, false,
                [&](const void* memory) { sums[i] = set.passes.squares[int(unit.grad->dtype)](memory, unit.count); });
  });
}

void scale(const std::vector<Grad>& grads, double factor, int threads, const InstructionSet& set) {
  for_each(units_of(grads), threads, [&](const Unit& unit, int64_t) {
    with_memory(unit, true,
                [&](void* memory) { set.passes.scale[int(unit.grad->dtype)](memory, memory, unit.count, factor); });
  });
}

}  // namespace fusedoptim::cpu
