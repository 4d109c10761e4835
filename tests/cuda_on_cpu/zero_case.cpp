#include "zero_case.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "runtime.h"
#include "step_case.h"

namespace cuda_on_cpu {
namespace {

using fusedoptim::cuda::kZeroChunk;
using fusedoptim::cuda::ZeroLaunch;

constexpr char kBefore = 0x5a;

struct Span {
  Span(int lead_bytes, int64_t zeroed, int guard)
      : lead(lead_bytes),
        bytes(zeroed),
        all(lead + bytes + guard),
        memory(static_cast<char*>(std::malloc(size_t(all))), std::free) {
    std::memset(memory.get(), kBefore, size_t(all));
  }

  void check(unsigned grid) const {
    for (int64_t i = 0; i < all; ++i) {
      const char wanted = i >= lead && i < lead + bytes ? 0 : kBefore;
      if (memory.get()[i] == wanted) continue;
      throw Mismatch("zero, grid " + std::to_string(grid) + ": " + std::to_string(bytes) + " bytes at alignment " +
                     std::to_string(lead) + ": byte " + std::to_string(i - lead) +
                     (wanted == 0 ? " is not zeroed" : " was written to"));
    }
  }

  int64_t lead, bytes, all;
  std::unique_ptr<char, void (*)(void*)> memory;
};

std::vector<int64_t> sizes(bool brief) {
  if (brief) return {1, 15, 40, kZeroChunk + 17};
  std::vector<int64_t> sizes;
  for (int size = 1; size <= 40; ++size) sizes.push_back(size);
  for (const int size : {-17, -16, -15, -1, 0, 1, 15, 16, 17}) sizes.push_back(kZeroChunk + size);
  sizes.push_back(2 * kZeroChunk + 3);
  return sizes;
}

int64_t launch_zero(const std::vector<int64_t>& sizes, const std::vector<int>& alignments, unsigned grid, int guard) {
  std::vector<Span> spans;
  std::vector<fusedoptim::cuda::ZeroSpan> table;
  std::vector<fusedoptim::cuda::Chunk> chunks;
  int64_t total = 0;
  for (const int64_t size : sizes) {
    for (const int alignment : alignments) {
      const Span& span = spans.emplace_back(alignment, size, guard);
      for (int64_t at = 0; at < size; at += kZeroChunk) chunks.push_back({int(table.size()), int(at / kZeroChunk)});
      table.push_back({span.memory.get() + span.lead, size});
      total += size;
    }
  }
  // The end of a span whose bytes have numbers above 2^31; the rest of it has no memory and is not launched.
  constexpr int kBeyond32Bits = (1 << 15) + 1, kEnd = 77;
  constexpr int64_t kLeftOut = int64_t(kBeyond32Bits) * kZeroChunk;
  const Span& end = spans.emplace_back(3, kEnd, guard);
  const auto begin = reinterpret_cast<uintptr_t>(end.memory.get()) + uintptr_t(end.lead) - uintptr_t(kLeftOut);
  chunks.push_back({int(table.size()), kBeyond32Bits});
  table.push_back({reinterpret_cast<char*>(begin), kLeftOut + kEnd});
  table.shrink_to_fit();
  chunks.shrink_to_fit();
  const ZeroLaunch launch{table.data(), chunks.data(), int(chunks.size())};
  const auto kernel = reinterpret_cast<void (*)(ZeroLaunch)>(const_cast<void*>(fusedoptim::cuda::zero_kernel()));
  if (grid == 0) grid = unsigned(chunks.size() + 1);
  run_grid({grid, 1, 1}, {fusedoptim::cuda::kThreads, 1, 1}, [&] { kernel(launch); });
  for (const Span& span : spans) span.check(grid);
  return total;
}

}  // namespace

ZeroTotals check_zero(bool brief, int guard) {
  constexpr unsigned kOneMoreThanChunks = 0;
  ZeroTotals totals;
  std::vector<int> alignments;
  for (int alignment = 0; alignment < 16; alignment += brief ? 5 : 1) alignments.push_back(alignment);
  const std::vector<unsigned> grids =
      brief ? std::vector<unsigned>{3} : std::vector<unsigned>{7, 1, kOneMoreThanChunks};
  for (const unsigned grid : grids) {
    totals.bytes += launch_zero(sizes(brief), alignments, grid, guard);
    ++totals.launches;
  }
  return totals;
}

}  // namespace cuda_on_cpu
