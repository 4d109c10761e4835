#include "norm_case.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/sum.h"
#include "cpu/grads.h"
#include "cuda/norm_launch.h"
#include "numbers.h"
#include "runtime.h"
#include "step_case.h"

namespace cuda_on_cpu {
namespace {

using namespace fusedoptim::cuda;
using fusedoptim::kSumUnit;
using fusedoptim::Layout;

// Of those around 1 each can tell in the sum. Of large ones of float32 the square is no float32.
enum class Numbers { kAroundOne, kLarge, kInfinite, kNan };

// Sizes and strides; none: contiguous.
using Dims = std::vector<int64_t>;
const std::vector<Dims> kLayouts{
    {9, 7, 1, 9}, {3, 41, 71, 2911, 71, 1}, {2, 50, 90, 4500, 1, 50}, {33, 2}, {700, 9, 18, 2}};

struct Gradient {
  DType dtype;
  int64_t count, lead, extent;
  const Dims* dims;  // or null
  std::vector<char> before;
  std::unique_ptr<char, void (*)(void*)> device{nullptr, std::free}, expected{nullptr, std::free};

  size_t size() const { return fusedoptim::size_of(dtype); }
  char* begin(const std::unique_ptr<char, void (*)(void*)>& memory) const {
    return memory.get() + size_t(lead) * size();
  }
  bool is_dense() const { return dims == nullptr || extent == count; }
};

// A launch and what is expected of it.
class Check {
 public:
  Check(bool brief, int guard, uint64_t seed, Numbers numbers,
        const std::vector<DType>& dtypes = {DType::f32, DType::bf16, DType::f16})
      : guard_(guard), numbers_(numbers), random_(seed) {
    for (const DType dtype : dtypes) {
      std::vector<int64_t> sizes{1, 0, 127, 128, 129, kSumUnit + 1, kChunk + 1, 3 * kSumUnit + 5};
      if (brief) sizes = {1, 129, kChunk + 1};
      if (!brief) sizes.insert(sizes.end(), {7, 1023, 1024, 1025, kSumUnit - 1, kSumUnit, kChunk - 1, kChunk});
      for (const int64_t size : sizes) add(dtype, size, int64_t(gradients_.size() % 3 == 1), nullptr);
      for (const Dims& dims : kLayouts) {
        int64_t count = 1;
        for (size_t d = 0; d < dims.size() / 2; ++d) count *= dims[d];
        if (!brief || count < 100) add(dtype, count, 0, &dims);
      }
      if (dtype == DType::bf16 && !brief) add(dtype, (fusedoptim::kSumLanes + 2) * kSumUnit + 3, 1, nullptr);
    }
    if (numbers >= Numbers::kInfinite) spoil();
    describe();
  }

  int64_t measure(unsigned grid, std::optional<float> grad_scale, bool store, float found_before) {
    restore();
    const std::vector<unsigned> no_tickets(gradients_.size() + 1, 0);
    std::vector<unsigned> tickets = no_tickets;
    std::vector<double> unit_sums(size_t(units_), -1), row_sums(rows_.size(), -1);
    const float scale = grad_scale.value_or(1);
    double norm = -1;
    fusedoptim::BFloat16 rounded{};
    float found = -1;
    int64_t skipped = 41;
    NormLaunch launch{rows_.data(),
                      chunks_.data(),
                      layouts_.data(),
                      tickets.data(),
                      unit_sums.data(),
                      row_sums.data(),
                      &norm,
                      &rounded,
                      grad_scale ? &scale : nullptr,
                      {&found_before, &found, &skipped}};
    launch.chunk_count = int(chunks_.size());
    launch.row_count = int(rows_.size());
    launch.filled_count = filled_;
    launch.rounded_as = int32_t(DType::bf16);
    launch.store = store;
    run(norm_kernel(), grid, launch);

    const double expected = expected_norm(grad_scale, store);
    const std::string when = "norm, grid " + std::to_string(grid) + (store ? ", stored" : "") + ", grad_scale " +
                             std::to_string(grad_scale.value_or(0)) + ", numbers " + std::to_string(int(numbers_));
    check_number(norm, expected, when);
    const bool is_finite = std::isfinite(expected), before = found_before != 0;
    if (is_finite != (numbers_ < Numbers::kInfinite)) throw Mismatch(when + ": the case is not what it should be");
    if (found != (before || !is_finite ? 1.0f : 0.0f)) throw Mismatch(when + ": found is " + std::to_string(found));
    if (skipped != 41 + (!before && !is_finite)) throw Mismatch(when + ": skipped is " + std::to_string(skipped));
    const uint16_t wanted = bf16_of(float(expected));
    if (!same_number(DType::bf16, rounded.bits, wanted)) {
      throw Mismatch(when + ": the rounded norm is " + hexadecimal(DType::bf16, rounded.bits) + " and should be " +
                     hexadecimal(DType::bf16, wanted));
    }
    if (tickets != no_tickets) throw Mismatch(when + ": a ticket was written to");

    float judged = -1;
    JudgeLaunch judgement{&norm, {&found_before, &judged, nullptr}};
    run(judge_kernel(), 2, judgement);
    if (judged != found) throw Mismatch(when + ": judged by the norm, found is " + std::to_string(judged));
    return compare(when);
  }

  int64_t clip(unsigned grid, double norm, double max_norm) {
    restore();
    const double coefficient = std::min(max_norm / (norm + 1e-6), 1.0);
    ClipLaunch launch{rows_.data(), chunks_.data(), layouts_.data(), &norm, max_norm, int(chunks_.size())};
    run(clip_kernel(), grid, launch);
    const bool is_one = !(coefficient != 1);
    if (!is_one)
      fusedoptim::cpu::scale(cpu_grads(), std::isnan(max_norm / (norm + 1e-6)) ? NAN : coefficient, 1, set());
    return compare("clip, grid " + std::to_string(grid) + ", norm " + std::to_string(norm) + ", max_norm " +
                       std::to_string(max_norm),
                   is_one);
  }

  unsigned chunks() const { return unsigned(chunks_.size()); }

 private:
  static const fusedoptim::cpu::InstructionSet& set() { return *fusedoptim::cpu::baseline(); }

  static uint16_t bf16_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return std::isnan(x) ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }

  template <class Launch>
  static void run(KernelHandle handle, unsigned grid, const Launch& launch) {
    const auto kernel = reinterpret_cast<void (*)(Launch)>(const_cast<void*>(handle));
    run_grid({grid, 1, 1}, {kThreads, 1, 1}, [&] { kernel(launch); });
  }

  void add(DType dtype, int64_t count, int64_t lead, const Dims* dims) {
    Gradient& made = gradients_.emplace_back();
    made.dtype = dtype;
    made.count = count;
    made.lead = lead;
    made.dims = dims;
    made.extent = count;
    if (dims != nullptr) {
      made.extent = 1;
      for (size_t d = 0; d < dims->size() / 2; ++d) made.extent += ((*dims)[d] - 1) * (*dims)[dims->size() / 2 + d];
    }
    const int64_t all = lead + made.extent + guard_;
    made.before.resize(size_t(all) * made.size());
    for (int64_t i = 0; i < all; ++i) {
      uint64_t bits = random_number(dtype, true, random_);
      while (!fits(dtype, bits)) bits = random_number(dtype, true, random_);
      std::memcpy(made.before.data() + size_t(i) * made.size(), &bits, made.size());
    }
    made.device.reset(static_cast<char*>(std::malloc(made.before.size())));
    made.expected.reset(static_cast<char*>(std::malloc(made.before.size())));
  }

  bool fits(DType dtype, uint64_t bits) const {
    const Format format = format_of(dtype);
    const uint64_t exponents = (uint64_t(1) << format.exponent_bits) - 1;
    return (bits >> format.mantissa_bits & exponents) <
           (numbers_ == Numbers::kAroundOne ? exponents / 2 + 8 : exponents);
  }

  // The last element of one row becomes infinite, or NaN with a payload that arithmetic does not keep.
  void spoil() {
    Gradient& last = gradients_[gradients_.size() / 2];
    const Format format = format_of(last.dtype);
    uint64_t bits = ((uint64_t(1) << format.exponent_bits) - 1) << format.mantissa_bits;
    if (numbers_ == Numbers::kNan) bits |= uint64_t(1) << (format.mantissa_bits - 1) | 1;
    std::memcpy(last.before.data() + size_t(last.lead + last.extent - 1) * last.size(), &bits, last.size());
  }

  void describe() {
    for (const Gradient& one : gradients_) {
      NormRow row{one.begin(one.device), one.count, units_, int32_t(one.dtype), kNoLayout, one.is_dense()};
      if (one.dims != nullptr) {
        row.layout = int32_t(layouts_.size());
        layouts_.push_back(int64_t(one.dims->size() / 2));
        layouts_.insert(layouts_.end(), one.dims->begin(), one.dims->end());
      }
      for (int64_t i = 0; i * kChunk < one.count; ++i) chunks_.push_back({int(rows_.size()), int(i)});
      units_ += (one.count + kSumUnit - 1) / kSumUnit;
      filled_ += one.count > 0;
      rows_.push_back(row);
    }
    rows_.shrink_to_fit();
    chunks_.shrink_to_fit();
    layouts_.shrink_to_fit();
  }

  void restore() {
    for (const Gradient& one : gradients_) {
      std::memcpy(one.device.get(), one.before.data(), one.before.size());
      std::memcpy(one.expected.get(), one.before.data(), one.before.size());
    }
  }

  std::vector<fusedoptim::cpu::Grad> cpu_grads() {
    std::vector<fusedoptim::cpu::Grad> grads;
    cpu_layouts_.clear();
    cpu_layouts_.reserve(gradients_.size());
    for (const Gradient& one : gradients_) {
      const Layout* layout = nullptr;
      if (one.dims != nullptr) {
        const int ndim = int(one.dims->size() / 2);
        layout = &cpu_layouts_.emplace_back(Layout{ndim, one.dims->data(), one.dims->data() + ndim});
      }
      grads.push_back({one.begin(one.expected), one.count, one.dtype, layout});
    }
    return grads;
  }

  double expected_norm(std::optional<float> grad_scale, bool store) {
    const std::vector<fusedoptim::cpu::Grad> grads = cpu_grads();
    std::vector<double> sums(grads.size());
    const double scale = grad_scale.value_or(1);
    if (store && grad_scale) {
      fusedoptim::cpu::unscale(grads, scale, 1, set(), sums.data());
    } else {
      fusedoptim::cpu::sum_squares(grads, grad_scale ? &scale : nullptr, 1, set(), sums.data());
    }
    return std::sqrt(fusedoptim::ordered_sum(sums.data(), int64_t(sums.size())));
  }

  static void check_number(double got, double wanted, const std::string& when) {
    uint64_t a, b;
    std::memcpy(&a, &got, sizeof(a));
    std::memcpy(&b, &wanted, sizeof(b));
    if (same_number(DType::f64, a, b)) return;
    throw Mismatch(when + ": the norm is " + hexadecimal(DType::f64, a) + " and should be " +
                   hexadecimal(DType::f64, b));
  }

  int64_t compare(const std::string& when, bool untouched = false) const {
    int64_t compared = 0;
    for (size_t row = 0; row < gradients_.size(); ++row) {
      const Gradient& one = gradients_[row];
      for (int64_t i = 0; i < int64_t(one.before.size() / one.size()); ++i, ++compared) {
        const uint64_t got = load_number(one.dtype, one.device.get() + size_t(i) * one.size());
        const uint64_t wanted = load_number(one.dtype, one.expected.get() + size_t(i) * one.size());
        if (untouched ? got == wanted : same_number(one.dtype, got, wanted)) continue;
        throw Mismatch(when + ": row " + std::to_string(row) + " of " + std::to_string(one.count) + " " +
                       name_of(one.dtype) + (one.dims != nullptr ? " strided" : "") + " elements: [" +
                       std::to_string(i - one.lead) + "] is " + hexadecimal(one.dtype, got) + " and should be " +
                       hexadecimal(one.dtype, wanted));
      }
    }
    return compared;
  }

  const int guard_;
  const Numbers numbers_;
  Random random_;
  std::vector<Gradient> gradients_;
  std::vector<NormRow> rows_;
  std::vector<Chunk> chunks_;
  std::vector<int64_t> layouts_;
  std::vector<Layout> cpu_layouts_;
  int64_t units_ = 0;
  int32_t filled_ = 0;
};

// Of no elements at all the norm is 0.
void check_empty() {
  const std::vector<NormRow> rows{{nullptr, 0, 0, int32_t(DType::f32), kNoLayout, true}};
  unsigned tickets[2] = {};
  double norm = -1, row_sum = -1;
  float rounded = -1;
  NormLaunch launch{rows.data(), nullptr, nullptr, tickets, nullptr, &row_sum, &norm, &rounded};
  launch.row_count = 1;
  launch.rounded_as = int32_t(DType::f32);
  const auto kernel = reinterpret_cast<void (*)(NormLaunch)>(const_cast<void*>(norm_kernel()));
  run_grid({1, 1, 1}, {kThreads, 1, 1}, [&] { kernel(launch); });
  if (norm != 0 || rounded != 0) throw Mismatch("the norm of nothing is " + std::to_string(norm));
}

}  // namespace

NormTotals check_norm(bool brief, int guard, uint64_t seed) {
  NormTotals totals;
  check_empty();
  for (const Numbers numbers : {Numbers::kAroundOne, Numbers::kLarge, Numbers::kInfinite, Numbers::kNan}) {
    if (brief && numbers != Numbers::kAroundOne) continue;
    Check check(brief, guard, seed * 31 + uint64_t(numbers), numbers);
    std::vector<unsigned> grids{3, check.chunks() + 2, 1, check.chunks() / 2 + 1};
    if (brief) grids = {3, 2, 1};
    int turn = int(numbers);
    const auto grid = [&] { return grids[turn++ % grids.size()]; };
    const auto add = [&](int64_t elements) {
      totals.elements += elements;
      ++totals.launches;
    };
    for (const auto& [scale, store] : {std::pair<float, bool>{0, false}, {3, false}, {3, true}, {65536, true}}) {
      if (brief && scale == 65536) continue;
      const std::optional<float> grad_scale = scale == 0 ? std::nullopt : std::optional<float>(scale);
      add(check.measure(grid(), grad_scale, store, turn % 2 == 0 ? 0.0f : -0.0f));
      if (!brief) add(check.measure(grid(), grad_scale, store, turn % 2 == 0 ? 1.0f : NAN));
    }
    for (const double max_norm : {0.3, 1e9, 2.5, 0.0}) add(check.clip(grid(), 2.5, max_norm));
    for (const double norm : {double(NAN), double(INFINITY)}) add(check.clip(grid(), norm, 1.0));
    add(check.clip(grid(), 1.0, NAN));
  }
  if (brief) {
    // A fence of a block's earlier chunk would hide that one is missing. Of few gradients, as above are few blocks.
    Check check(brief, guard, seed, Numbers::kAroundOne, {DType::f32});
    totals.elements += check.measure(check.chunks() + 2, 3, true, 0.0f) + check.clip(check.chunks() + 2, 2.5, 0.3);
    totals.launches += 2;
  }
  return totals;
}

}  // namespace cuda_on_cpu
