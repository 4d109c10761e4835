// The norm of all gradients, in one launch whatever their number, dtypes and layouts; and what follows from it. The sum
// has the order of core/sum.h: a block adds two units at once, each thread a lane. The block that finishes a gradient's
// last unit adds its units, and the one that finishes the last gradient adds these. There are no gradients of float64,
// whose squares may overflow.
#include "cuda/device.cuh"
#include "cuda/norm_launch.h"

namespace fusedoptim::cuda {

constexpr int kNormBlocksPerProcessor = 4;  // that registers must suffice for: what a thread reads ahead is little

struct Lanes {
  double at[kThreads];
};

// Where element `index`, in row-major order, lies: numbers of 32 bits are divided several times as fast.
template <class Index>
__device__ __forceinline__ int64_t offset_of(const int64_t* layout, Index index) {
  const int ndim = int(layout[0]);
  int64_t offset = 0;
#pragma unroll 1
  for (int d = ndim - 1; d >= 0; --d) {
    const Index size = Index(layout[1 + d]), rest = index / size;
    offset += int64_t(index - rest * size) * layout[1 + ndim + d];
    index = rest;
  }
  return offset;
}

// The elements of a row, from `begin` on.
template <class S, bool strided>
struct Elements {
  S* first;
  int64_t begin;
  const int64_t* layout;
  bool is_small;

  __device__ __forceinline__ Elements(const NormRow& row, const int64_t* layouts, int64_t from)
      : first(static_cast<S*>(row.data) + (strided ? 0 : from)),
        begin(from),
        layout(strided ? layouts + row.layout : nullptr),
        is_small(row.count <= INT32_MAX) {}
  __device__ __forceinline__ S* operator[](int i) const {
    if constexpr (!strided) return global(first + i);
    return global(first + (is_small ? offset_of(layout, uint32_t(begin + i)) : offset_of(layout, begin + i)));
  }
};

// Calls `work` with a number of the row's type.
template <class Work>
__device__ __forceinline__ auto by_dtype(const NormRow& row, const Work& work) {
  switch (DType(row.dtype)) {
    case DType::bf16:
      return work(BFloat16{});
    case DType::f16:
      return work(Half{});
    default:
      return work(float{});
  }
}

// ---- measuring ----------------------------------------------------------------------------------------------------
// Adds the squares of elements i, i + kSumLanes, ... of `count`, once all of them are read: exact in double.
template <class S, bool strided, int count>
__device__ __forceinline__ void add_squares(const Elements<S, strided>& elements, int i, const NormLaunch& launch,
                                            float grad_scale, double& sum) {
  S x[count];
#pragma unroll
  for (int k = 0; k < count; ++k) x[k] = *elements[i + k * kSumLanes];
#pragma unroll
  for (int k = 0; k < count; ++k) {
    if (launch.grad_scale != nullptr) x[k] = narrow<S>(widen(x[k]) / grad_scale);
    const double wide = widen(x[k]);
    sum = fma(wide, wide, sum);
  }
  if (!launch.store) return;
#pragma unroll
  for (int k = 0; k < count; ++k) *elements[i + k * kSumLanes] = x[k];
}

// The sum of this thread's lane of `count` elements.
template <class S, bool strided>
__device__ __forceinline__ double squares_of_lane(const Elements<S, strided> elements, int count,
                                                  const NormLaunch& launch) {
  constexpr int kAhead = strided ? 1 : 8;  // that a thread reads at once, so that memory is kept busy
  const float grad_scale = launch.grad_scale != nullptr ? *launch.grad_scale : 1;
  double sum = 0;
  int i = threadIdx.x % kSumLanes;
  for (; i + (kAhead - 1) * kSumLanes < count; i += kAhead * kSumLanes) {
    add_squares<S, strided, kAhead>(elements, i, launch, grad_scale, sum);
  }
  for (; i < count; i += kSumLanes) add_squares<S, strided, 1>(elements, i, launch, grad_scale, sum);
  return sum;
}

template <class S>
__device__ __forceinline__ double squares_of_lane(const NormRow& row, int64_t begin, int count,
                                                  const NormLaunch& launch) {
  if (row.layout == kNoLayout) return squares_of_lane(Elements<S, false>(row, launch.layouts, begin), count, launch);
  return squares_of_lane(Elements<S, true>(row, launch.layouts, begin), count, launch);
}

// Adds the upper half of the lanes of each unit to the lower, until one is left, once all threads have written theirs.
// Lanes behind the last value are 0, which changes no sum. All threads have read what they need when it returns.
__device__ __forceinline__ void fold(Lanes& lanes) {
  for (int width = kSumLanes / 2; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x % kSumLanes < width) lanes.at[threadIdx.x] += lanes.at[threadIdx.x + width];
  }
  __syncthreads();
}

// ordered_sum() of core/sum.h, of `value(i)`, for all threads of the block. Nobody reads lanes when it is called.
template <class Value>
__device__ __forceinline__ double sum_in_order(int64_t count, const Value& value, Lanes& lanes) {
  double sum = 0;
  if (threadIdx.x < kSumLanes) {
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < count; i += kSumLanes) sum += value(i);
  }
  lanes.at[threadIdx.x] = sum;
  fold(lanes);
  return lanes.at[0];
}

// Whether this is the last of `count` calls for a ticket: then all that was written before the others is seen.
__device__ __forceinline__ bool is_last_of(unsigned* ticket, int64_t count) {
  __threadfence();
  const bool is_last = atomicInc(ticket, unsigned(count - 1)) == unsigned(count - 1);
  __threadfence();
  return is_last;
}

__device__ __forceinline__ void judge_by(double norm, const Verdict& verdict) {
  const bool before = verdict.found_before != nullptr && *verdict.found_before != 0;
  const bool is_finite = norm <= DBL_MAX;  // false for NaN
  if (verdict.found != nullptr) *verdict.found = before || !is_finite ? 1.0f : 0.0f;
  if (verdict.skipped != nullptr && !before && !is_finite) *verdict.skipped += 1;
}

__device__ __forceinline__ void store_rounded(double x, void* at, DType dtype) {
  switch (dtype) {
    case DType::f64:
      *static_cast<double*>(at) = x;
      return;
    case DType::f32:
      *static_cast<float*>(at) = float(x);
      return;
    case DType::bf16:
      *static_cast<BFloat16*>(at) = narrow<BFloat16>(float(x));
      return;
    case DType::f16:
      *static_cast<Half*>(at) = narrow<Half>(float(x));
  }
}

static __global__ void __launch_bounds__(kThreads, kNormBlocksPerProcessor)
    norm(const __grid_constant__ NormLaunch launch) {
  FUSEDOPTIM_SHARED(Lanes, lanes);
  FUSEDOPTIM_SHARED(bool, is_last);

  bool finishes = launch.chunk_count == 0;
  for (int c = blockIdx.x; c < launch.chunk_count; c += gridDim.x) {
    const Chunk chunk = launch.chunks[c];
    const NormRow& row = launch.rows[chunk.row];
    const int64_t units = (row.count + kSumUnit - 1) / kSumUnit;
    const int64_t first = int64_t(chunk.index) * kUnitsPerChunk;  // unit
    const int64_t begin = (first + threadIdx.x / kSumLanes) * kSumUnit;
    const int count = int(max(min(row.count - begin, kSumUnit), int64_t(0)));
    lanes.at[threadIdx.x] =
        by_dtype(row, [&](auto s) { return squares_of_lane<decltype(s)>(row, begin, count, launch); });
    fold(lanes);
    double* const unit_sums = launch.unit_sums + row.first_unit;
    if (threadIdx.x == 0) {
      for (int k = 0; k < kUnitsPerChunk && first + k < units; ++k) unit_sums[first + k] = lanes.at[k * kSumLanes];
      is_last = is_last_of(launch.tickets + chunk.row, (row.count + kChunk - 1) / kChunk);
    }
    __syncthreads();
    if (!is_last) continue;
    const double sum = sum_in_order(units, [&](int64_t i) { return unit_sums[i]; }, lanes);
    if (threadIdx.x == 0) {
      launch.row_sums[chunk.row] = sum;
      is_last = is_last_of(launch.tickets + launch.row_count, launch.filled_count);
    }
    __syncthreads();
    finishes = is_last;
  }
  if (!finishes) return;
  const auto of_row = [&](int64_t i) { return launch.rows[i].count > 0 ? launch.row_sums[i] : 0.0; };
  const double norm = sqrt(sum_in_order(launch.row_count, of_row, lanes));
  if (threadIdx.x != 0) return;
  *launch.norm = norm;
  store_rounded(norm, launch.rounded, DType(launch.rounded_as));
  judge_by(norm, launch.verdict);
}

static __global__ void __launch_bounds__(kThreads) judge(const __grid_constant__ JudgeLaunch launch) {
  if (blockIdx.x == 0 && threadIdx.x == 0) judge_by(*launch.norm, launch.verdict);
}

// ---- clipping in place ----------------------------------------------------------------------------------------------
template <class S, int width>
__device__ __forceinline__ void multiply(S* at, Arithmetic<S> factor) {
  using Elements = Pack<S, width>;
  Elements elements = *reinterpret_cast<const Elements*>(global(at));
#pragma unroll
  for (int i = 0; i < width; ++i) elements.at[i] = narrow<S>(widen(elements.at[i]) * factor);
  *reinterpret_cast<Elements*>(global(at)) = elements;
}

template <class S>
__device__ __forceinline__ void multiply(const NormRow& row, int64_t begin, const ClipLaunch& launch,
                                         double coefficient) {
  constexpr int kWhole = kWidth<S>;
  const auto factor = Arithmetic<S>(coefficient);
  const int count = int(min(row.count - begin, int64_t(kChunk)));
  const bool is_flat = row.is_dense;
  S* const first = static_cast<S*>(row.data) + (is_flat ? begin : 0);
  const int packed = is_flat && aligned(first) ? count / kWhole * kWhole : 0;  // elements taken 16 bytes at a time
  for (int i = threadIdx.x * kWhole; i < packed; i += kThreads * kWhole) multiply<S, kWhole>(first + i, factor);
  for (int i = packed + threadIdx.x; i < count; i += kThreads) {
    multiply<S, 1>(first + (is_flat ? i : offset_of(launch.layouts + row.layout, begin + i)), factor);
  }
}

static __global__ void __launch_bounds__(kThreads) clip(const __grid_constant__ ClipLaunch launch) {
  const double coefficient = clip_coefficient(*launch.norm, launch.max_norm);
  if (coefficient == 1) return;
  for (int c = blockIdx.x; c < launch.chunk_count; c += gridDim.x) {
    const Chunk chunk = launch.chunks[c];
    const NormRow& row = launch.rows[chunk.row];
    const int64_t begin = int64_t(chunk.index) * kChunk;
    by_dtype(row, [&](auto s) { multiply<decltype(s)>(row, begin, launch, coefficient); });
  }
}

KernelHandle norm_kernel() { return reinterpret_cast<KernelHandle>(norm); }
KernelHandle clip_kernel() { return reinterpret_cast<KernelHandle>(clip); }
KernelHandle judge_kernel() { return reinterpret_cast<KernelHandle>(judge); }

}  // namespace fusedoptim::cuda
