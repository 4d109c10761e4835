// The kernel of a rule, compiled once per rule and arithmetic type: FUSEDOPTIM_RULE and FUSEDOPTIM_ARITHMETIC name
// them.
#include <new>

#include "cuda/storage.cuh"
#include FUSEDOPTIM_RULE_HEADER

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

// A row's operands: those of the rule, then the companion, which has a place here even where there is none. In grad's
// place there may be the average, which no pass needs beside it.
template <int kRule>
struct Operands {
  static constexpr int kGrad = 1, kCompanion = kRule, kAll = sizeof(T) == 4 ? kRule + 1 : kRule;

  const Row& row;
  const StepLaunch& launch;
  const bool has_average;
  Raw<T> raw[kAll];

  __device__ __forceinline__ Operands(const Row& row, const StepLaunch& launch, bool has_average)
      : row(row), launch(launch), has_average(has_average) {}

  // In the row and the launch.
  __device__ __forceinline__ int index(int k) const {
    return k == kCompanion ? kRule + launch.averages : k == kGrad && has_average ? kRule : k;
  }
  __device__ __forceinline__ bool is_there(int k) const { return k < kRule || launch.companion != Companion::none; }
  __device__ __forceinline__ Format format(int k) const { return launch.formats[index(k)]; }
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
  constexpr int kStates = count_of(Rule<T>::states_of(variant)), kCount = kElements<T>;
  T param[kCount], grad[kCount], states[kStates + 1][kCount];
  decode(operands.raw[1], operands.format(1), grad);
  if (numbers.factor != 1) {  // rounded as grad is stored, which it is not
#pragma unroll
    for (int i = 0; i < kCount; ++i) grad[i] = grad[i] * numbers.factor;
    encode(grad, operands.format(1), operands.raw[1]);
    decode(operands.raw[1], operands.format(1), grad);
  }
  const Surroundings surroundings{operands.row, numbers.step, part.first, part.block, part.count};
  decode_param(operands.raw, Operands::kCompanion, operands.format(0), operands.launch.companion, param);
  for_each<kStates>(
      [&](auto k) { decode_state(operands.raw[2 + k], operands.format(2 + k), k, surroundings, states[k]); });

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

  encode_param(param, operands.format(0), operands.launch.companion, surroundings, Operands::kCompanion, operands.raw);
  for_each<kStates>(
      [&](auto k) { encode_state(states[k], operands.format(2 + k), k, surroundings, operands.raw[2 + k]); });
}

template <class Operands>
__device__ __forceinline__ void unscale(const Numbers& numbers, Operands& operands) {
  T grad[kElements<T>];
  decode(operands.raw[1], operands.format(1), grad);
#pragma unroll
  for (int i = 0; i < kElements<T>; ++i) grad[i] = grad[i] / numbers.grad_scale;
  encode(grad, operands.format(1), operands.raw[1]);
}

// Moves the average towards the parameter as it is stored.
template <class Operands>
__device__ __forceinline__ void move_average(Operands& operands) {
  constexpr int kAverage = Operands::kGrad;
  const StepLaunch& launch = operands.launch;
  T param[kElements<T>], average[kElements<T>];
  decode(operands.raw[0], operands.format(0), param);
  decode(operands.raw[kAverage], operands.format(kAverage), average);
  const Lerp<T> lerp(launch.average_weight);
#pragma unroll
  for (int i = 0; i < kElements<T>; ++i) {
    average[i] = launch.average_is_new ? param[i] : lerp(average[i], param[i]);
  }
  encode(average, operands.format(kAverage), operands.raw[kAverage]);
}

enum Pass { kUnscales, kApplies, kAverages, kPasses };

// Updates the elements of a thread, whatever their number and wherever they lie. There are not registers enough for all
// operands at once: so unscaling and averages have passes of their own, which leave and find numbers in the cache.
template <template <class> class Rule, int variant>
__device__ __forceinline__ void update(Room<Rule<T>>& rules, const Row& row, const Part& part, const Numbers& numbers,
                                       const StepLaunch& launch) {
  constexpr int kRule = 2 + count_of(Rule<T>::states_of(variant));
  constexpr unsigned kParam = 1, kGrad = 2, kAverage = kGrad;  // sets of operands
  const unsigned all = ((1u << kRule) - 1) | (launch.companion != Companion::none ? 1u << kRule : 0);
#pragma unroll 1
  for (int pass = launch.grad_scale != nullptr && !numbers.skip ? kUnscales : kApplies; pass < kPasses; ++pass) {
    if (pass == kAverages && (!launch.averages || numbers.skip)) continue;
    Operands<kRule> operands(row, launch, pass == kAverages);
    const unsigned average_read = launch.average_is_new ? 0 : kAverage, applies = numbers.skip ? 0 : all;
    operands.load(part, pass == kUnscales ? kGrad : pass == kAverages ? kParam | average_read : applies);
    if (pass == kUnscales) {
      unscale(numbers, operands);
    } else if (pass == kAverages) {
      move_average(operands);
    } else {
      if (!numbers.skip) apply<Rule, variant>(rules, part, numbers, operands);
      if (launch.zero_grad) operands.raw[1] = {};
    }
    const unsigned applied = (applies & ~kGrad) | (launch.zero_grad ? kGrad : 0);
    operands.store(part, pass == kUnscales ? kGrad : pass == kAverages ? kAverage : applied);
  }
}

// Which elements of a chunk a thread takes with its warp: unit by unit, or block by block of 8 bits where a row has
// such. False where there are none left, for all threads of the warp alike.
__device__ __forceinline__ bool find(const Row& row, int32_t chunk, int unit, Part& part) {
  part.block = int64_t(chunk) * kUnitsOfChunk + unit;
  int64_t begin = part.block * kUnit, end = row.count;
  if (sizeof(T) == 4 && row.columns != 0) {
    const int64_t in_line = Blocks{row.columns}.in_row(), line = part.block / in_line;
    begin = line * row.columns + (part.block - line * in_line) * kBlockOf8Bits;
    end = min(min(begin + kBlockOf8Bits, (line + 1) * row.columns), end);
  }
  part.first = begin + threadIdx.x % kWarp * kElements<T>;
  part.count = int(max(min(end - part.first, int64_t(kElements<T>)), int64_t(0)));
  return begin < end;
}

// What a row's numbers are after this step, rounded as they will be stored. `step`: where it lies on the host.
template <class R>
__device__ __forceinline__ fusedoptim::Numbers next_numbers(const typename R::Options& options,
                                                            const StepNumbers& stored, double step) {
  fusedoptim::Numbers numbers;
  numbers.step = step;
  if (stored.step == nullptr) return numbers;
  const auto is_double = [&](int i) { return (stored.are_double >> i & 1) != 0; };
  const auto rounded = [&](double x, int i) { return is_double(i) ? x : double(float(x)); };
  numbers.step = rounded(read(stored.step, is_double(0)) + 1, 0);
  if constexpr (NumbersOf<R>::kCount > 0) {
    for_each<NumbersOf<R>::kCount>([&](auto i) { numbers.before[i] = read(stored.others[i], is_double(i + 1)); });
    NumbersOf<R>::advance(options, numbers);
    for_each<NumbersOf<R>::kCount>([&](auto i) { numbers.after[i] = rounded(numbers.after[i], i + 1); });
  }
  return numbers;
}

__device__ __forceinline__ void write(void* at, bool is_double, double x) {
  is_double ? void(*global(static_cast<double*>(at)) = x) : void(*global(static_cast<float*>(at)) = float(x));
}

// Four states and their update need more registers than two blocks leave each other.
template <template <class> class Rule, int variant>
constexpr int kBlocks = count_of(Rule<T>::states_of(variant)) > 3 ? 1 : kBlocksPerProcessor;

template <template <class> class Rule, int variant>
__global__ void __launch_bounds__(kThreads, kBlocks<Rule, variant>) step(const __grid_constant__ StepLaunch launch) {
  using Options = typename Rule<T>::Options;
  FUSEDOPTIM_SHARED(Room<Options>, options);
  FUSEDOPTIM_SHARED(Room<Rule<T>>, computed);
  FUSEDOPTIM_SHARED(double, computed_step);
  FUSEDOPTIM_SHARED(int32_t, computed_row);
  FUSEDOPTIM_SHARED(bool, is_last);

  const bool skip = launch.found_inf != nullptr && *launch.found_inf != 0;
  if (skip && !launch.zero_grad) return;
  const T grad_scale = launch.grad_scale != nullptr ? T(*launch.grad_scale) : T(1);
  const double clip = launch.norm != nullptr ? clip_coefficient(*launch.norm, launch.max_norm) : 1;
  const T factor = T(launch.factor * clip);

  const bool computes = launch.computes_constants && threadIdx.x == 0;
  if (computes) {
    computed_step = NAN;
    computed_row = -1;
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
    if (launch.computes_constants) {
      __syncthreads();  // nobody reads the rule of the last chunk any more
      if (computes) {
        const int32_t row = launch.chunks[c].row;  // not kept beside all that this takes
        if (row != computed_row) {
          const fusedoptim::Numbers next = next_numbers<Rule<T>>(options.get(), launch.rows[row].numbers, launch.step);
          if (next.step != computed_step || NumbersOf<Rule<T>>::kCount > 0)
            new (computed.bytes)
                Rule<T>(NumbersOf<Rule<T>>::make(options.get(), next));  // copied, its padding would be too
          computed_step = next.step;
          computed_row = row;
        }
      }
      __syncthreads();
    }
    const Chunk chunk = launch.chunks[c];
    const Row& row = launch.rows[chunk.row];
    Part part;
    for (int unit = threadIdx.x / kWarp; unit < kUnitsOfChunk && find(row, chunk.index, unit, part); unit += kWarps) {
      __syncwarp();  // or the rule would be kept in registers from one to the next
      update<Rule, variant>(computed, row, part, {skip, grad_scale, factor, computed_step}, launch);
    }
  }

  // The last block to come here advances the numbers, which the others have read.
  if (skip || launch.counts_count == 0) return;
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicInc(launch.ticket, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  for (int i = threadIdx.x; i < launch.counts_count; i += kThreads) {
    const StepNumbers& stored = launch.counts[i];
    const fusedoptim::Numbers next = next_numbers<Rule<T>>(options.get(), stored, 0);
    write(stored.step, (stored.are_double & 1) != 0, next.step);
    if constexpr (NumbersOf<Rule<T>>::kCount > 0) {
      for_each<NumbersOf<Rule<T>>::kCount>(
          [&](auto k) { write(stored.others[k], (stored.are_double >> (k + 1) & 1) != 0, next.after[k]); });
    }
  }
}

// ---- the variants of the rule -------------------------------------------------------------------------------------
template <template <class> class Rule, int... variants>
KernelHandle find_variant(int variant, std::integer_sequence<int, variants...>) {
  static_assert(sizeof(Rule<T>) <= kMaxRuleBytes && sizeof(typename Rule<T>::Options) <= kMaxRuleBytes);
  KernelHandle found = nullptr;
  ((variant == variants ? void(found = reinterpret_cast<KernelHandle>(step<Rule, variants>)) : void()), ...);
  return found;
}

template <template <class> class Rule>
KernelHandle kernel_of(int variant) {
  return find_variant<Rule>(variant, std::make_integer_sequence<int, Rule<T>::kVariants>());
}
template KernelHandle kernel_of<FUSEDOPTIM_RULE>(int variant);

}  // namespace FUSEDOPTIM_ARITHMETIC
}  // namespace fusedoptim::cuda
