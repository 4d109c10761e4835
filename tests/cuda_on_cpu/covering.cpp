// The design. What a kernel does is decided by few things at a time, and for each set of things that meet in one
// condition, every kernel (rule x variant x dtype) gets every combination of them:
//
//   small    maximize x zero_grad x grad_scale (they meet in `update`), on every size up to 65, so every number of
//            elements ahead of and behind whole packs of 2, 4 and 8, with every set of misaligned operands that
//            matters: none, all, each one alone. Many small tensors in one launch.
//   skipped  found_inf x zero_grad (they meet in `skip`): every kind of number that is not 0 must stop the step.
//   folded   where constants come from x how many options lie on the device; rows with own and with shared steps.
//   large    sizes around one chunk and beyond two, since the chunk is where indices are cut.
//   strided  layouts x zero_grad x grad_scale, as a strided row takes another way through the loop.
//
//   mixed    in float32 arithmetic: how the parameter is stored and its companion, how each state is, the average; on
//            sizes around what a thread, a warp and a block of 8 bits take, and every operand misaligned by itself.
//            Over the kernels every storage meets every other.
//
// That is for the first two rules, and for one that keeps numbers beside its step. Of the others, whose kernels are the
// same around another rule, each has a launch of the small, the folded and the strided ones, and three mixtures; in a
// brief run, one.
//
// All else turns with the number of the launch, by counts that share no factor, so that across the 64 kernels every
// pair of it occurs: found_inf absent or 0, -0; the clip; the average; the fold; the grid from one block to more blocks
// than chunks.
//
// A brief run is ThreadSanitizer's, whose time is that of clocks with a number for each thread of the largest grid: so
// three blocks at most. Each of them takes many chunks then, and for each kernel there is a launch of more blocks than
// chunks as well.
#include "covering.h"

#include <cmath>
#include <iterator>

#include "any_rule.h"
#include "cuda/launch.h"

namespace cuda_on_cpu {
namespace {

using fusedoptim::Coding;
using fusedoptim::Companion;
using fusedoptim::cuda::kChunk;

const Strides kTransposed{{9, 7}, {{7, 1}, {1, 9}, {1, 9}, {7, 1}, {1, 9}}};
const Strides kWithGaps{{5, 6}, {{17, 2}, {6, 1}, {1, 5}, {40, 3}}};
const Strides kEverySecond{{33}, {{2}, {1}}};
const Strides kScalar{{}, {{}}};
const Strides kBeyondOneChunk{{3, 41, 71}, {{2911, 71, 1}, {1, 3, 123}, {41, 1, 123}}};

// Every set of misaligned operands that matters to a condition on all of them: none, all, each one alone.
std::vector<unsigned> alignments(int operands) {
  std::vector<unsigned> sets{0, (1u << operands) - 1};
  for (int k = 0; k < operands; ++k) sets.push_back(1u << k);
  return sets;
}

int64_t count_of(const Strides& strides) {
  int64_t count = 1;
  for (const int64_t size : strides.sizes) count *= size;
  return count;
}

RowCase strided(const Strides& strides) { return {count_of(strides), 0, &strides}; }

class Design {
 public:
  Design(int rule, int variant, DType dtype, int kernel, uint64_t seed,
         const std::function<void(const StepCase&)>& visit)
      : rule_(rule),
        variant_(variant),
        dtype_(dtype),
        launch_(kernel),
        seed_(seed * 1000003 + kernel * 1009),
        alignments_(alignments(operands_of(rule, variant))),
        few_(rule >= 2 && all_rules()[size_t(rule)].name != "nadam"),
        visit_(visit) {}

  void all() {
    small();
    if (!few_) skipped();
    folded();
    if (!few_) large();
    strided_rows();
  }

  // How operands are stored: 15 mixtures of each kernel, or 3, or 1.
  void mixed(bool brief) {
    using Stored = Mixture::Stored;
    struct Param {
      Stored stored;
      Companion companion;
    };
    constexpr Coding kPlain = Coding::nearest, kUpOrDown = Coding::stochastic;
    const Param params[] = {
        {{DType::bf16, kPlain}, Companion::remainder},    {{DType::bf16, kUpOrDown}, Companion::none},
        {{DType::f16, kPlain}, Companion::master},        {{DType::f32, kPlain}, Companion::none},
        {{DType::bf16, kPlain}, Companion::compensation}, {{DType::bf16, kPlain}, Companion::master},
        {{DType::f16, kPlain}, Companion::none},          {{DType::f16, kPlain}, Companion::compensation},
        {{DType::bf16, kPlain}, Companion::none}};
    const Stored grads[] = {{DType::bf16}, {DType::f32}, {DType::f16}};
    const Stored states[] = {{DType::u8}, {DType::bf16, kUpOrDown}, {DType::f32}, {DType::bf16}, {DType::f16}};
    constexpr unsigned kFewBlocks[] = {3, 2, 1, 3, 2};
    for (int i = 0; i < (brief && few_ ? 1 : brief || few_ ? 3 : 15); ++i) {
      StepCase step = next();
      if (brief) step.grid = kFewBlocks[launch_ % std::size(kFewBlocks)];
      const auto turn = size_t(launch_);
      const Param& param = params[turn % std::size(params)];
      Mixture& mixture = step.mixture.emplace();
      mixture.companion = param.companion;
      mixture.operands = {param.stored, grads[turn % 3]};
      bool has_blocks = false;
      for (int k = 2; k < operands_of(rule_, variant_); ++k) {
        mixture.operands.push_back(states[(turn / 2 + size_t(k) * turn) % std::size(states)]);
        Stored& made = mixture.operands.back();
        if (made.dtype == DType::u8) made.coding = k == 2 && turn % 7 != 0 ? Coding::sign : Coding::magnitude;
        has_blocks = has_blocks || made.dtype == DType::u8;
      }
      if (step.averages) mixture.operands.push_back(grads[turn / 4 % 3]);
      if (param.companion != Companion::none) {
        mixture.operands.push_back({param.companion == Companion::master ? DType::f32 : param.stored.dtype});
      }
      mixture.plain = has_blocks && turn % 4 != 0;
      const auto operands = int(mixture.operands.size());
      has_blocks ? add_blocks(step, operands) : add_sizes(step, operands);
      visit(step);
    }
  }

  // Each thread's own elements, a second chunk for the same and for another block, rules folded by one thread for all,
  // step counts raised by the last block, one without a chunk among them: that is all that threads share.
  void brief() {
    for (const bool on_device : {true, false}) {
      StepCase step = next();
      step.zero_grad = on_device;
      step.grad_scale = 3.0f;
      step.fold = on_device ? Fold::kOnDevice : Fold::kOnHostCounting;
      step.device_numbers = on_device ? 2 : 0;
      step.found_inf = 0.0f;
      step.rows = {{600}, {17, alignments_[1]}, {5, 0, nullptr, 3}};
      if (on_device) {
        step.rows.push_back(strided(kTransposed));
        step.rows.back().step = 7;  // the block that has had the first row folds again
      } else {
        step.rows.push_back({kChunk + 1});
      }
      step.grid = 3;
      visit(step);
    }
    StepCase step = next();
    step.fold = Fold::kOnHostCounting;
    step.rows = {{600}, {17}};
    step.grid = 3;
    visit(step);
  }

 private:
  void add_sizes(StepCase& step, int operands) const {
    for (const int64_t size : {1, 7, 8, 9, 255, 257}) step.rows.push_back({size});
    for (const unsigned misaligned : alignments(operands)) step.rows.push_back({300, misaligned, nullptr, 3});
    step.rows.push_back(strided(kTransposed));
    if (launch_ % 5 == 0) step.rows.push_back({kChunk + 9, 0, nullptr, 0, false, (1 << 18) + 1});
    turn_first_elements(step);
  }

  // Blocks that are whole, that end with a line or within a thread's elements, in one chunk and beyond.
  void add_blocks(StepCase& step, int operands) const {
    for (const int64_t size : {1, 8, 255, 256, 257, 777}) step.rows.push_back(lines(size, size));
    for (const unsigned misaligned : alignments(operands)) step.rows.push_back(lines(600, 300, misaligned));
    step.rows.push_back(lines(400, 10));
    step.rows.push_back(strided(kTransposed));
    step.rows.back().columns = 7;
    if (launch_ % 5 == 0) {
      step.rows.push_back(lines(2 * kChunk + 2 * 515, kChunk + 515));
      step.rows.push_back(lines(35 * 300, 300));
      step.rows.push_back(strided(kBeyondOneChunk));
      step.rows.back().columns = 41 * 71;
    }
    turn_first_elements(step);
  }

  void turn_first_elements(StepCase& step) const {
    constexpr int64_t kPlaces[] = {0, 8, 0, 3, (int64_t(1) << 35) + 5};
    for (size_t i = 0; i < step.rows.size(); ++i) step.rows[i].first_element = kPlaces[(i + launch_) % 5];
  }

  static RowCase lines(int64_t count, int64_t columns, unsigned misaligned = 0) {
    RowCase row{count, misaligned, nullptr, 3};
    row.columns = columns;
    return row;
  }

  void small() {
    std::vector<RowCase> rows;
    for (const int64_t size : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65}) {
      for (const unsigned misaligned : alignments_)
        rows.push_back({size, misaligned, nullptr, double(rows.size() % 5)});
    }
    for (int flags = 0; flags < (few_ ? 1 : 8); ++flags) {
      StepCase step = next();
      set_flags(step, few_ ? int(launch_ % 8) : flags);
      step.rows = rows;
      visit(step);
    }
  }

  void skipped() {
    for (const float found_inf : {1.0f, 2.5f, NAN, -1.0f, 0x1p-149f}) {
      for (const bool zero_grad : {false, true}) {
        StepCase step = next();
        step.found_inf = found_inf;
        step.zero_grad = zero_grad;
        step.rows = {{1}, {9, alignments_[1]}, {65}, {64, 2}, strided(kTransposed)};
        visit(step);
      }
    }
  }

  void folded() {
    // Steps that repeat at once, that come back later, and that two rows share; the fourth row takes two chunks.
    const std::vector<RowCase> rows{{5, 0, nullptr, 0},    {4, 0, nullptr, 0, true}, {7, 0, nullptr, 0},
                                    {3, 0, nullptr, 999},  {8, 0, nullptr, 1e6},     {6, 0, nullptr, 999},
                                    {5, 1, nullptr, 16e6}, {9, 2, nullptr, 1}};
    for (const Fold fold : {Fold::kOnDevice, Fold::kOnDeviceHostStep}) {
      for (int numbers = 0; numbers <= fusedoptim::kMaxDeviceNumbers; ++numbers) {
        if (few_ && (fold != Fold::kOnDevice || numbers != 2)) continue;
        StepCase step = next();
        step.fold = fold;
        step.device_numbers = numbers;
        step.rows = rows;
        step.grid = numbers % 2 == 0 ? 1 : 3;
        visit(step);
      }
    }
    if (few_) return;
    StepCase step = next();
    step.fold = Fold::kOnHostCounting;
    for (int i = 0; i < fusedoptim::cuda::kThreads + 9; ++i) step.rows.push_back({1});  // more counts than threads
    step.grid = 2;
    visit(step);
  }

  void large() {
    for (const bool on_device : {false, true}) {
      StepCase step = next();
      step.fold = on_device ? Fold::kOnDevice : Fold::kOnHost;
      set_flags(step, int(launch_ % 8));
      const unsigned one = alignments_[2 + launch_ % (alignments_.size() - 2)];
      for (const unsigned misaligned : {0u, alignments_[1], one}) {
        for (const int64_t size : {kChunk - 1, kChunk, kChunk + 1}) step.rows.push_back({size, misaligned});
      }
      step.rows.push_back({2 * kChunk + 9, on_device ? one : 0});
      constexpr int kBeyond32Bits = (1 << 18) + 1;  // elements from here on have numbers above 2^31
      step.rows.push_back({kChunk + 5, 0, nullptr, 0, false, kBeyond32Bits});
      visit(step);
    }
  }

  void strided_rows() {
    for (int flags = 0; flags < 8; flags += few_ ? 8 : 2) {
      StepCase step = next();
      set_flags(step, flags);
      step.rows = {strided(kTransposed), {9, 0}, strided(kWithGaps), strided(kEverySecond), strided(kScalar)};
      if (flags == 2) step.rows.push_back(strided(kBeyondOneChunk));
      visit(step);
    }
  }

  // The next launch, with all that turns.
  StepCase next() {
    ++launch_;
    StepCase step;
    step.rule = rule_;
    step.variant = variant_;
    step.dtype = dtype_;
    step.seed = seed_ + launch_;
    step.fold = Fold(launch_ % 4);
    step.device_numbers = step.fold >= Fold::kOnDevice ? int(launch_ / 4 % 3) : 0;
    const std::optional<float> not_found[] = {std::nullopt, 0.0f, -0.0f};
    step.found_inf = not_found[launch_ % 3];
    set_flags(step, int(launch_ % 7));
    constexpr double kClips[] = {1, 0.3, 1, 1, 0.7, 1, NAN, 1e-3, 1, 0, 1};
    step.clip = kClips[launch_ % std::size(kClips)];
    step.clip_on_device = launch_ % 5 < 2;
    step.averages = launch_ % 13 % 3 != 0;
    step.average_is_new = launch_ % 13 % 3 == 2;
    step.grid = 0;
    return step;
  }

  static void set_flags(StepCase& step, int flags) {
    step.maximize = (flags & 1) != 0;
    step.zero_grad = (flags & 2) != 0;
    step.grad_scale = (flags & 4) != 0 ? std::optional<float>(3.0f) : std::nullopt;
  }

  void visit(StepCase& step) const {
    const int64_t chunks = chunks_of(step.rows), grids[] = {3, chunks, 1, chunks + 2, chunks / 2 + 1};
    if (step.grid == 0) step.grid = unsigned(grids[launch_ % std::size(grids)]);
    visit_(step);
  }

  const int rule_, variant_;
  const DType dtype_;
  uint64_t launch_;
  const uint64_t seed_;
  const std::vector<unsigned> alignments_;
  const bool few_;
  const std::function<void(const StepCase&)>& visit_;
};

}  // namespace

void for_each_step_case(const std::string& storage, bool brief, uint64_t seed,
                        const std::function<void(const StepCase&)>& visit) {
  int kernel = 0;
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
    for (size_t rule = 0; rule < all_rules().size(); ++rule) {
      for (int variant = 0; variant < all_rules()[rule].variants; ++variant, ++kernel) {
        const auto is_wanted = [&](const char* name) { return storage.empty() || storage == name; };
        Design design(int(rule), variant, dtype, kernel, seed, visit);
        if (is_wanted(name_of(dtype))) brief ? design.brief() : design.all();
        if (dtype == DType::f32 && is_wanted("mixed")) design.mixed(brief);
      }
    }
  }
}

}  // namespace cuda_on_cpu
