// The streaming limit of this machine: the memory traffic of an optimizer step with almost no arithmetic.
//
// A chunk is a stretch of `size` bytes that begins at the same offset in each of its streams: some that are read and
// written back, as parameter and state are, and after them one that is only read, the gradient. What the bytes mean
// makes no difference. Values do not change: `zero` is 0, which the compiler cannot know.
#include <omp.h>

#include <atomic>
#include <cstdint>

namespace {

constexpr int max_streams = 6;

struct Chunk {
    char* stream[max_streams];
    int64_t size;
};

struct Way {  // as `Way` in probe.py
    int32_t threads, dynamic, backwards, ahead;
};

typedef uint64_t Line __attribute__((vector_size(64), aligned(1), may_alias));

template <int written, bool fetch>
void move(const Chunk& chunk, int64_t ahead, uint64_t zero) {
    char* at[written + 1];
    for (int k = 0; k <= written; ++k) at[k] = chunk.stream[k];
    const int64_t size = chunk.size;
    int64_t i = 0;
    for (; i + int64_t(sizeof(Line)) <= size; i += sizeof(Line)) {
        if constexpr (fetch) {
            for (int k = 0; k <= written; ++k) __builtin_prefetch(at[k] + i + ahead);
        }
        *(Line*)(at[0] + i) ^= *(const Line*)(at[written] + i) & zero;
        for (int k = 1; k < written; ++k) *(Line*)(at[k] + i) ^= Line{} + zero;
    }
    for (; i < size; ++i) {
        at[0][i] ^= at[written][i] & char(zero);
        for (int k = 1; k < written; ++k) at[k][i] ^= char(zero);
    }
}

template <int written>
void step_chunk(const Chunk& chunk, int64_t ahead, uint64_t zero) {
    ahead > 0 ? move<written, true>(chunk, ahead, zero) : move<written, false>(chunk, 0, zero);
}

template <bool fetch>
void scan_lines(const Chunk& chunk, int64_t ahead, uint64_t zero) {
    char* at = chunk.stream[0];
    Line all{};
    int64_t i = 0;
    for (; i + int64_t(sizeof(Line)) <= chunk.size; i += sizeof(Line)) {
        if constexpr (fetch) __builtin_prefetch(at + i + ahead);
        all ^= *(const Line*)(at + i);
    }
    char sum = 0;
    for (; i < chunk.size; ++i) sum ^= at[i];
    for (int k = 0; k < int(sizeof(Line)); ++k) sum ^= ((const char*)&all)[k];
    if (zero != 0) at[0] = sum;
}

void scan_chunk(const Chunk& chunk, int64_t ahead, uint64_t zero) {
    ahead > 0 ? scan_lines<true>(chunk, ahead, zero) : scan_lines<false>(chunk, 0, zero);
}

// Static: each thread walks its own share, the same in every call. Dynamic: whoever is free takes the next chunk.
template <class Work>
void share_out(const Chunk* chunks, int64_t count, const Way& way, uint64_t zero, Work work) {
    std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(way.threads)
    {
        const int64_t self = omp_get_thread_num(), threads = omp_get_num_threads();
        const int64_t begin = way.dynamic ? 0 : count * self / threads;
        const int64_t end = way.dynamic ? count : count * (self + 1) / threads;
        for (int64_t i = begin; (way.dynamic ? i = next.fetch_add(1, std::memory_order_relaxed) : i) < end; ++i) {
            work(chunks[way.backwards ? begin + end - 1 - i : i], way.ahead, zero);
        }
    }
}

}  // namespace

extern "C" {

// `written` streams, from 1 to 5, are read and written; the one after them is read.
void step(const Chunk* chunks, int64_t count, int written, const Way* way, uint64_t zero) {
    constexpr void (*kernels[])(const Chunk&, int64_t, uint64_t) = {step_chunk<1>, step_chunk<2>, step_chunk<3>,
                                                                    step_chunk<4>, step_chunk<5>};
    static_assert(sizeof(kernels) / sizeof(*kernels) == max_streams - 1, "one for each number of streams");
    share_out(chunks, count, *way, zero, kernels[written - 1]);
}

// The only stream is read, and were `zero` not 0, the sum of a chunk's bytes without carry written to its first.
void scan(const Chunk* chunks, int64_t count, int, const Way* way, uint64_t zero) {
    share_out(chunks, count, *way, zero, scan_chunk);
}

}  // extern "C"
