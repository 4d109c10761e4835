// One kernel over any rule, for the storage type that FUSEDOPTIM_STORAGE names: compiled once for each.
#include <utility>

#include "core/average.h"
#include "cuda/device.cuh"

namespace fusedoptim::cuda {
namespace FUSEDOPTIM_STORAGE {

using S = Storage<DType::FUSEDOPTIM_STORAGE>;
using T = Arithmetic<S>;

// Updates `width` elements, which lie side by side at each of `at`. Body, tail and every layout are this one text.
template <template <class> class Rule, int variant, int width>
__device__ __forceinline__ void update(const Rule<T>& rule, S* const* at, const StepLaunch& launch, bool skip,
                                       T grad_scale, T factor) {
  constexpr int kStates = Rule<T>::states_of(variant), kOperands = 2 + kStates;
  using Elements = Pack<S, width>;
  if (!skip) {
    Elements operands[kOperands];
#pragma unroll
    for (int k = 0; k < kOperands; ++k) operands[k] = *reinterpret_cast<const Elements*>(global(at[k]));
#pragma unroll
    for (int i = 0; i < width; ++i) {
      if (launch.grad_scale != nullptr) operands[1].at[i] = narrow<S>(widen(operands[1].at[i]) / grad_scale);
      T param = widen(operands[0].at[i]), grad = widen(operands[1].at[i]), state[kStates + 1];
      if (factor != 1) grad = widen(narrow<S>(grad * factor));
#pragma unroll
      for (int k = 0; k < kStates; ++k) state[k] = widen(operands[2 + k].at[i]);
      rule.template operator()<variant>(param, grad, state);
      operands[0].at[i] = narrow<S>(param);
#pragma unroll
      for (int k = 0; k < kStates; ++k) operands[2 + k].at[i] = narrow<S>(state[k]);
    }
#pragma unroll
    for (int k = 0; k < kOperands; ++k) {
      if (k != 1) *reinterpret_cast<Elements*>(global(at[k])) = operands[k];
    }
    if (launch.grad_scale != nullptr && !launch.zero_grad) *reinterpret_cast<Elements*>(global(at[1])) = operands[1];
    if (launch.averages) {
      Elements* const average = reinterpret_cast<Elements*>(global(at[kOperands]));
      const Average<T> lerp(launch.average_weight);
      Elements moved = launch.average_is_new ? operands[0] : *average;
      if (!launch.average_is_new) {
#pragma unroll
        for (int i = 0; i < width; ++i) moved.at[i] = narrow<S>(lerp(widen(moved.at[i]), widen(operands[0].at[i])));
      }
      *average = moved;
    }
  }
  if (launch.zero_grad) *reinterpret_cast<Elements*>(global(at[1])) = Elements{};
}

// Finds element `index`, in row-major order, in each operand of a layout.
template <int operands>
__device__ __forceinline__ void locate(const int64_t* layout, int64_t index, S** at) {
  const int ndim = int(layout[0]);
  for (int d = ndim - 1; d >= 0; --d) {
    const int64_t size = layout[1 + d], rest = index / size, place = index - rest * size;
#pragma unroll
    for (int k = 0; k < operands; ++k) at[k] += place * layout[1 + (1 + k) * ndim + d];
    index = rest;
  }
}

// The row's step count after this step, rounded as it will be stored.
__device__ __forceinline__ double next_step(const Row& row) {
  const double next = read(row.step, row.step_is_double) + 1;
  return row.step_is_double ? next : double(float(next));
}

template <template <class> class Rule, int variant>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) step(const __grid_constant__ StepLaunch launch) {
  constexpr int kOperands = 2 + Rule<T>::states_of(variant), kWhole = kWidth<S>;
  using Options = typename Rule<T>::Options;
  FUSEDOPTIM_SHARED(Room<Options>, options);
  FUSEDOPTIM_SHARED(Room<Rule<T>>, computed);
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

  for (int c = blockIdx.x; c < launch.chunk_count; c += gridDim.x) {
    const Chunk chunk = launch.chunks[c];
    const Row& row = launch.rows[chunk.row];
    if (launch.computes_constants) {
      __syncthreads();  // nobody reads the rule of the last chunk any more
      if (computes) {
        const double next = row.step != nullptr ? next_step(row) : launch.step;
        if (next != rule_step) computed.get() = Rule<T>(options.get(), next);
        rule_step = next;
      }
      __syncthreads();
    }
    const Rule<T> rule = launch.computes_constants ? computed.get() : *reinterpret_cast<const Rule<T>*>(launch.rule);

    const int64_t begin = int64_t(chunk.index) * kChunk;
    const int count = int(min(row.count - begin, int64_t(kChunk)));
    S* first[kOperands + 1];
    bool whole = row.layout == kNoLayout;
#pragma unroll
    for (int k = 0; k < kOperands + 1; ++k) {
      const bool is_used = k < kOperands || launch.averages;
      first[k] = is_used ? static_cast<S*>(row.operands[k]) + (row.layout == kNoLayout ? begin : 0) : nullptr;
      whole = whole && aligned(first[k]);
    }
    const int packed = whole ? count / kWhole * kWhole : 0;  // elements taken 16 bytes at a time
    for (int i = threadIdx.x * kWhole; i < packed; i += kThreads * kWhole) {
      S* at[kOperands + 1];
#pragma unroll
      for (int k = 0; k < kOperands + 1; ++k) at[k] = first[k] + i;
      update<Rule, variant, kWhole>(rule, at, launch, skip, grad_scale, factor);
    }
    for (int i = packed + threadIdx.x; i < count; i += kThreads) {
      S* at[kOperands + 1];
#pragma unroll
      for (int k = 0; k < kOperands + 1; ++k) at[k] = first[k] + (row.layout == kNoLayout ? i : 0);
      if (row.layout != kNoLayout) {
        const int64_t* const layout = launch.layouts + row.layout;
        const int64_t index = begin + i;
        launch.averages ? locate<kOperands + 1>(layout, index, at) : locate<kOperands>(layout, index, at);
      }
      update<Rule, variant, 1>(rule, at, launch, skip, grad_scale, factor);
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

}  // namespace FUSEDOPTIM_STORAGE
}  // namespace fusedoptim::cuda
