// The streaming limit of this machine: the memory traffic of an optimizer step with almost no arithmetic.
//
// A chunk is a stretch of `size` floats that begins at the same offset in each of its streams. Stream 0 is the
// parameter, the last one the gradient, which is read only; all others are read and written back. Values do not
// change: `one` is 1 and `zero` is 0, which the compiler cannot know, and without -ffast-math it must compute.
#include <omp.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int max_streams = 4;

struct Chunk {
    float* stream[max_streams];
    int64_t size;
};

struct AdamTraffic {  // 28 bytes per element
    static void run(const Chunk& chunk, float one, float zero) {
        float* __restrict p = chunk.stream[0];
        float* __restrict m = chunk.stream[1];
        float* __restrict v = chunk.stream[2];
        const float* __restrict g = chunk.stream[3];
        for (int64_t i = 0; i < chunk.size; ++i) {
            p[i] += g[i] * zero;
            m[i] *= one;
            v[i] *= one;
        }
    }
};

struct MomentumTraffic {  // 20 bytes per element
    static void run(const Chunk& chunk, float one, float zero) {
        float* __restrict p = chunk.stream[0];
        float* __restrict buf = chunk.stream[1];
        const float* __restrict g = chunk.stream[2];
        for (int64_t i = 0; i < chunk.size; ++i) {
            p[i] += g[i] * zero;
            buf[i] *= one;
        }
    }
};

struct FillTraffic {  // 4 bytes per element
    static void run(const Chunk& chunk, float, float zero) {
        if (zero == 0.0f) std::memset(chunk.stream[0], 0, sizeof(float) * chunk.size);
    }
};

template <class Traffic>
void stream(const Chunk* chunks, int64_t count, int threads, bool dynamic, float one, float zero) {
    if (dynamic) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
        for (int64_t i = 0; i < count; ++i) Traffic::run(chunks[i], one, zero);
    } else {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < count; ++i) Traffic::run(chunks[i], one, zero);
    }
}

}  // namespace

extern "C" {

void adam(const Chunk* chunks, int64_t count, int threads, bool dynamic, float one, float zero) {
    stream<AdamTraffic>(chunks, count, threads, dynamic, one, zero);
}

void sgd(const Chunk* chunks, int64_t count, int threads, bool dynamic, float one, float zero) {
    stream<MomentumTraffic>(chunks, count, threads, dynamic, one, zero);
}

void fill(const Chunk* chunks, int64_t count, int threads, bool dynamic, float one, float zero) {
    stream<FillTraffic>(chunks, count, threads, dynamic, one, zero);
}

}  // extern "C"
