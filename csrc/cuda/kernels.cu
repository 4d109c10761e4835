// One kernel over any rule, for the arithmetic type that FUSEDOPTIM_ARITHMETIC names: compiled once for each.
#include "core/average.h"
#include "cuda/storage.cuh"

namespace fusedoptim::cuda {
namespace FUSEDOPTIM_ARITHMETIC {

using T = Storage<DType::FUSEDOPTIM_ARITHMETIC>;

constexpr int kUnit = kElements<T> * kWarp, kUnitsOfChunk = kChunk / kUnit;  // elements that a warp takes at once
constexpr int kWarps = kThreads / kWarp;

// Elements that a thread takes at once: `count` from number `first` of the row on.
struct Part {
  int64_t first;
  int count;
  int64_t block;  // of 8 bits, to which they belong
};

// What is the same for all elements of a row.
struct Numbers {
  bool skip;
  T grad_scale, factor;
  const double& step;  // the step count, after its increment
};

// A row's operands, of which the rule has the first `kRule`; the average and the companion have places here even where
// there are none.
template <int kRule>
struct Operands {
  static constexpr int kAverage = kRule, kCompanion = kRule + 1, kAll = sizeof(T) == 4 ? kRule + 2 : kRule + 1;

  const Row& row;
  const StepLaunch& launch;
  Raw<T> raw[kAll];

  __device__ __forceinline__ Operands(const Row& row, const StepLaunch& launch) : row(row), launch(launch) {}

  __device__ __forceinline__ int index(int k) const { return k == kCompanion ? kRule + launch.averages : k; }
  __device__ __forceinline__ bool is_there(int k) const {
    return k < kRule || (k == kAverage ? launch.averages : launch.companion != Companion::none);
  }
  __device__ __forceinline__ Format format(int k) const { return launch.formats[k]; }
  __device__ __forceinline__ int size(int k) const { return sizeof(T) == 8 ? 8 : launch.sizes[index(k)]; }

  // Not kept: there are fewer registers than would be wanted.
  __device__ __forceinline__ char* at(int k, int64_t element) const {
    return static_cast<char*>(row.operands[index(k)]) + element * size(k);
  }

  // Reads the elements of a set of operands: those that are whole at once, the others one by one.
  __device__ __forceinline__ void load(const Part& part, unsigned wanted) {
    unsigned by_one = 0;
    for_each<kAll>([&](auto k) {
      if ((wanted >> k & 1) == 0) return;
      const char* const from = at(k, part.first);
      if (row.layout == kNoLayout && is_whole<T>(from, size(k), part.count)) {
        cuda::load(from, size(k), raw[k]);
      } else {
        raw[k] = {};
        by_one |= 1u << k;
      }
    });
    for_each_one(by_one, part, [&](auto k, int i, char* from) { load_one(from, size(k), i, raw[k]); });
  }

  __device__ __forceinline__ void store(const Part& part, unsigned wanted) const {
    unsigned by_one = 0;
    for_each<kAll>([&](auto k) {
      if ((wanted >> k & 1) == 0) return;
      char* const to = at(k, part.first);
      if (row.layout == kNoLayout && is_whole<T>(to, size(k), part.count)) {
        cuda::store(raw[k], to, size(k));
      } else {
        by_one |= 1u << k;
      }
    });
    for_each_one(by_one, part, [&](auto k, int i, char* to) { store_one(raw[k], i, to, size(k)); });
  }

 private:
  // Calls `work` for each element of the operands in the set, with its place.
  template <class Work>
  __device__ __forceinline__ void for_each_one(unsigned operands, const Part& part, const Work& work) const {
    if (operands == 0) return;
#pragma unroll 1
    for (int i = 0; i < part.count; ++i) {
      int64_t places[kAll];
      locate(part.first + i, places);
      for_each<kAll>([&](auto k) {
        if (operands >> k & 1) work(k, i, at(k, places[k]));
      });
    }
  }

  // Where element `number`, in row-major order, lies in each operand, in elements.
  __device__ __forceinline__ void locate(int64_t number, int64_t* places) const {
    for_each<kAll>([&](auto k) { places[k] = row.layout == kNoLayout ? number : 0; });
    if (row.layout == kNoLayout) return;
    const int64_t* const layout = launch.layouts + row.layout;
    const int ndim = int(layout[0]);
#pragma unroll 1
    for (int d = ndim - 1; d >= 0; --d) {
      const int64_t size = layout[1 + d], rest = number / size, place = number - rest * size;
      for_each<kAll>([&](auto k) {
        if (is_there(k)) places[k] += place * layout[1 + (1 + index(k)) * ndim + d];
      });
      number = rest;
    }
  }
};

// Applies the rule to what was read, and leaves what is to be stored.
template <template <class> class Rule, int variant, class Operands>
__device__ __forceinline__ void apply(Room<Rule<T>>& rules, const Part& part, const Numbers& numbers,
                                      Operands& operands) {
  constexpr int kStates = Rule<T>::states_of(variant), kRule = 2 + kStates, kCount = kElements<T>;
  const StepLaunch& launch = operands.launch;
  const Row& row = operands.row;
  T param[kCount], grad[kCount], states[kStates + 1][kCount];
  decode(operands.raw[1], operands.format(1), grad);
  // What is unscaled is stored so; what is clipped is not. Either is rounded as grad is stored before it is used.
  const bool unscales = launch.grad_scale != nullptr;
#pragma unroll 1
  for (int pass = unscales ? 0 : 1; pass < (numbers.factor != 1 ? 2 : 1); ++pass) {
    Raw<T> rounded;
#pragma unroll
    for (int i = 0; i < kCount; ++i) grad[i] = pass == 0 ? grad[i] / numbers.grad_scale : grad[i] * numbers.factor;
    encode(grad, operands.format(1), nullptr, rounded);
    decode(rounded, operands.format(1), grad);
    if (pass == 0) operands.raw[1] = rounded;
  }
  const bool has_companion = sizeof(T) == 4 && launch.companion != Companion::none;
  if constexpr (sizeof(T) == 4) {
    if (has_companion)
      decode_pair(operands.raw[0], operands.raw[Operands::kCompanion], launch.companion,
                  operands.format(0) == Format::f16, param);
  }
  if (!has_companion) decode(operands.raw[0], operands.format(0), param);
  for_each<kStates>([&](auto k) {
    const Format format = operands.format(2 + k);
    if constexpr (sizeof(T) == 4) {
      if (is_8bit(format)) return decode_8bit(operands.raw[2 + k], format, row.scales[k][part.block], states[k]);
    }
    decode(operands.raw[2 + k], format, states[k]);
  });

  const Rule<T> rule = rules.get();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    T state[kStates + 1];
#pragma unroll
    for (int k = 0; k < kStates; ++k) state[k] = states[k][i];
    rule.template operator()<variant>(param[i], grad[i], state);
#pragma unroll
    for (int k = 0; k < kStates; ++k) states[k][i] = state[k];
  }

  for_each<kRule>([&](auto k) {
    if constexpr (k != 1) {
      const Format format = operands.format(k);
      T* const from = k == 0 ? param : states[k == 0 ? 0 : k - 2];
      if constexpr (sizeof(T) == 8) {
        encode(from, format, nullptr, operands.raw[k]);
      } else {
        if (k == 0 && has_companion) {
          return encode_pair(from, launch.companion, format == Format::f16, operands.raw[0],
                             operands.raw[Operands::kCompanion]);
        }
        uint32_t bits[4] = {};
        if (is_random(format)) {
          const RandomKey key = RandomKey::of(row.seed, numbers.step, row.parameter, k);
          random_bits(key, uint64_t(row.first_element + part.first), bits);
        }
        if (k == 0 || !is_8bit(format)) return encode(from, format, bits, operands.raw[k]);
        const uint32_t scale = scale_of(largest_of_warp(largest_of(from, part.count)));
        encode_8bit(from, format, scale, bits, operands.raw[k]);
        // All lanes have read the old one: largest_of_warp() waits for what they made of it.
        if (threadIdx.x % kWarp == 0) row.scales[k == 0 ? 0 : k - 2][part.block] = __uint_as_float(scale);
      }
    }
  });
}

// Moves the average towards the parameter as it is stored.
template <class Operands>
__device__ __forceinline__ void move_average(Operands& operands) {
  constexpr int kAverage = Operands::kAverage;
  const StepLaunch& launch = operands.launch;
  T param[kElements<T>], average[kElements<T>];
  decode(operands.raw[0], operands.format(0), param);
  decode(operands.raw[kAverage], operands.format(kAverage), average);
  const Average<T> lerp(launch.average_weight);
#pragma unroll
  for (int i = 0; i < kElements<T>; ++i) {
    average[i] = launch.average_is_new ? param[i] : lerp(average[i], param[i]);
  }
  encode(average, operands.format(kAverage), nullptr, operands.raw[kAverage]);
}

// Updates the elements of a thread, whatever their number and wherever they lie. The average has a pass of its own,
// which finds the parameter in the cache: there are not registers enough for all operands at once.
template <template <class> class Rule, int variant>
__device__ __forceinline__ void update(Room<Rule<T>>& rules, const Row& row, const Part& part, const Numbers& numbers,
                                       const StepLaunch& launch) {
  constexpr int kRule = 2 + Rule<T>::states_of(variant);
  using All = Operands<kRule>;
  constexpr unsigned kParam = 1, kGrad = 2, kAverage = 1u << All::kAverage;
  const unsigned companion = launch.companion != Companion::none ? 1u << All::kCompanion : 0;
  const bool stores_grad = launch.grad_scale != nullptr || launch.zero_grad;
#pragma unroll 1
  for (int pass = 0; pass < (launch.averages && !numbers.skip ? 2 : 1); ++pass) {
    All operands(row, launch);
    const unsigned all = ((1u << kRule) - 1) | companion;
    operands.load(part, numbers.skip ? 0 : pass == 0 ? all : kParam | (launch.average_is_new ? 0 : kAverage));
    if (pass == 0) {
      if (!numbers.skip) apply<Rule, variant>(rules, part, numbers, operands);
      if (launch.zero_grad) operands.raw[1] = {};
    } else {
      move_average(operands);
    }
    operands.store(part, numbers.skip ? kGrad : pass == 0 ? all & ~(stores_grad ? 0 : kGrad) : kAverage);
  }
}

// Which elements the threads of a warp take: one unit after another of a chunk, a unit being a block of 8 bits where a
// row has such.
class Units {
 public:
  __device__ __forceinline__ Units(const Row& row, int32_t chunk)
      : row_(row), first_(int64_t(chunk) * kUnitsOfChunk), unit_(threadIdx.x / kWarp) {
    if (!has_blocks()) return;
    const int64_t in_row = Blocks{row.columns}.in_row();
    line_ = (first_ + unit_) / in_row;
    in_line_ = (first_ + unit_) - line_ * in_row;
  }

  // False where none are left, for all threads of the warp alike.
  __device__ __forceinline__ bool next(Part& part) {
    part.block = first_ + unit_;
    int64_t begin = part.block * kUnit, end = row_.count;
    if (has_blocks()) {
      begin = line_ * row_.columns + in_line_ * kBlockOf8Bits;
      end = min(min(begin + kBlockOf8Bits, (line_ + 1) * row_.columns), end);
    }
    if (unit_ >= kUnitsOfChunk || begin >= end) return false;
    part.first = begin + threadIdx.x % kWarp * kElements<T>;
    part.count = int(max(min(end - part.first, int64_t(kElements<T>)), int64_t(0)));
    unit_ += kWarps;
    if (!has_blocks()) return true;
    const int64_t in_row = Blocks{row_.columns}.in_row();
    for (in_line_ += kWarps; in_line_ >= in_row; ++line_) in_line_ -= in_row;
    return true;
  }

 private:
  __device__ __forceinline__ bool has_blocks() const { return sizeof(T) == 4 && row_.columns != 0; }

  const Row& row_;
  const int64_t first_;
  int unit_;
  int64_t line_ = 0, in_line_ = 0;  // where there are blocks: which line of them it is in, and where there
};

// The row's step count after this step, rounded as it will be stored.
__device__ __forceinline__ double next_step(const Row& row) {
  const double next = read(row.step, row.step_is_double) + 1;
  return row.step_is_double ? next : double(float(next));
}

template <template <class> class Rule, int variant>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) step(const __grid_constant__ StepLaunch launch) {
  using Options = typename Rule<T>::Options;
  FUSEDOPTIM_SHARED(Room<Options>, options);
  FUSEDOPTIM_SHARED(Room<Rule<T>>, computed);
  FUSEDOPTIM_SHARED(double, computed_step);
  FUSEDOPTIM_SHARED(bool, is_last);

  const bool skip = launch.found_inf != nullptr && *launch.found_inf != 0;
  if (skip && !launch.zero_grad) return;
  const T grad_scale = launch.grad_scale != nullptr ? T(*launch.grad_scale) : T(1);
  const double clip = launch.norm != nullptr ? clip_coefficient(*launch.norm, launch.max_norm) : 1;
  const T factor = T(launch.factor * clip);

  const bool computes = launch.computes_constants && threadIdx.x == 0;
  double rule_step = NAN;
  if (computes) {
    options.get() = *reinterpret_cast<const Options*>(launch.rule);
    for (int i = 0; i < launch.number_count; ++i) {
      const DeviceNumber& number = launch.numbers[i];
      reinterpret_cast<double*>(options.bytes)[number.option] = read(number.at, number.is_double);
    }
  }

  if (!launch.computes_constants) {
    if (threadIdx.x == 0) {
      computed.get() = *reinterpret_cast<const Rule<T>*>(launch.rule);
      computed_step = launch.step;
    }
    __syncthreads();
  }
  for (int c = blockIdx.x; c < launch.chunk_count; c += gridDim.x) {
    const Chunk chunk = launch.chunks[c];
    const Row& row = launch.rows[chunk.row];
    if (launch.computes_constants) {
      __syncthreads();  // nobody reads the rule of the last chunk any more
      if (computes) {
        const double next = row.step != nullptr ? next_step(row) : launch.step;
        if (next != rule_step) computed.get() = Rule<T>(options.get(), next);
        rule_step = computed_step = next;
      }
      __syncthreads();
    }
    Units units(row, chunk.index);
    for (Part part; units.next(part);) {
      __syncwarp();  // or the rule would be kept in registers from one to the next
      update<Rule, variant>(computed, row, part, {skip, grad_scale, factor, computed_step}, launch);
    }
  }

  // The last block to come here raises the step counts, which the others have read.
  if (skip || launch.counts_count == 0) return;
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicInc(launch.ticket, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  for (int i = threadIdx.x; i < launch.counts_count; i += kThreads) {
    const Count& count = launch.counts[i];
    if (count.is_double) {
      *global(static_cast<double*>(count.at)) += 1;
    } else {
      *global(static_cast<float*>(count.at)) += 1;
    }
  }
}

// ---- the table of all of them -------------------------------------------------------------------------------------
template <template <class> class Rule, int... variants>
KernelHandle find_variant(int variant, std::integer_sequence<int, variants...>) {
  static_assert(sizeof(Rule<T>) <= kMaxRuleBytes && sizeof(typename Rule<T>::Options) <= kMaxRuleBytes);
  KernelHandle found = nullptr;
  ((variant == variants ? void(found = reinterpret_cast<KernelHandle>(step<Rule, variants>)) : void()), ...);
  return found;
}

template <template <class> class... Rules>
KernelHandle find(int rule, int variant, RuleList<Rules...>) {
  KernelHandle found = nullptr;
  int index = 0;
  ((index++ == rule ? void(found = find_variant<Rules>(variant, std::make_integer_sequence<int, Rules<T>::kVariants>()))
                    : void()),
   ...);
  return found;
}

KernelHandle step_kernel(int rule, int variant) { return find(rule, variant, AllRules()); }

}  // namespace FUSEDOPTIM_ARITHMETIC
}  // namespace fusedoptim::cuda
