// Zeroes spans of memory, in one launch however many there are.
#include "cuda/device.cuh"

namespace fusedoptim::cuda {

static __global__ void __launch_bounds__(kThreads) zero(const __grid_constant__ ZeroLaunch launch) {
  for (int c = blockIdx.x; c < launch.chunk_count; c += gridDim.x) {
    const Chunk chunk = launch.chunks[c];
    const ZeroSpan& span = launch.spans[chunk.row];
    const int64_t begin = int64_t(chunk.index) * kZeroChunk;
    char* const first = span.data + begin;
    const int count = int(min(span.bytes - begin, int64_t(kZeroChunk)));
    const int head = min(int(-reinterpret_cast<uintptr_t>(first) % 16), count);
    const int tail = (count - head) / 16 * 16 + head;
    if (threadIdx.x < head) first[threadIdx.x] = 0;
    for (int i = head + threadIdx.x * 16; i < tail; i += kThreads * 16)
      *reinterpret_cast<uint4*>(global(first + i)) = uint4{};
    if (tail + int(threadIdx.x) < count) first[tail + threadIdx.x] = 0;
  }
}

KernelHandle zero_kernel() { return reinterpret_cast<KernelHandle>(zero); }

}  // namespace fusedoptim::cuda
