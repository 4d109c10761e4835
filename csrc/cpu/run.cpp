#include "cpu/run.h"

#include <algorithm>
#include <cmath>

#include "cpu/pool/parallel_for.h"
#include "cpu/strided.h"

namespace fusedoptim::cpu {
namespace {

constexpr int64_t kChunk = 16384;       // elements that a thread claims at once
constexpr int64_t kPerThread = 32768;   // elements below which another thread costs more than it brings
constexpr int64_t kBlock = 2048;        // elements that stay in the first-level cache between two passes over them
constexpr int64_t kStridedBlock = 256;  // elements of each operand in the scratch buffers on the stack

class Runner {
 public:
  Runner(const RunOptions& options, const InstructionSet& set) : options_(options), set_(set) {}

  void operator()(const Chunk& chunk) const {
    const Task& task = *chunk.task;
    if (task.layout != nullptr) {
      for_blocks(chunk, kStridedBlock, [&](int64_t at, int64_t n) { strided(task, at, n); });
    } else if (task.mixed) {
      const bool passes = options_.unscale || options_.zero_grad;
      for_blocks(chunk, passes ? kBlock : kChunk,
                 [&](int64_t at, int64_t n) { update_mixed(task, task.operands, at, at, n); });
    } else {
      // With a second pass over an operand the chunk is walked in blocks, so that this pass finds it in the cache.
      const bool passes = options_.unscale || options_.zero_grad || clips_in_buffer(task) || task.average_is_new ||
                          (task.averages && task.dtype == DType::f64);
      const int64_t block = passes ? kBlock : kChunk;
      for (int64_t done = 0; done < chunk.count; done += block) {
        update(task, task.operands, chunk.begin + done, std::min(block, chunk.count - done));
      }
    }
  }

 private:
  // Blocks end where one of 8 bits does.
  template <class Work>
  static void for_blocks(const Chunk& chunk, int64_t block, Work work) {
    const int64_t end = chunk.begin + chunk.count;
    for (int64_t at = chunk.begin; at < end;) {
      const int64_t n = chunk.task->cut(at, std::min(block, end - at));
      work(at, n);
      at += n;
    }
  }

  void update(const Task& task, void* const* operands, int64_t begin, int64_t count) const {
    const RuleKernels& kernels = *set_.rules[task.rule];
    const bool moves = task.averages && !task.average_is_new, in_double = task.dtype == DType::f64;
    const Kernel kernel = !moves || in_double        ? kernels.plain[task.variant][int(task.dtype)]
                          : task.dtype == DType::f32 ? kernels.averaging[task.variant]
                                                     : nullptr;
    if (kernel == nullptr) return update_mixed(as_mixed(task), operands, begin, begin, count);
    if (options_.unscale) unscale(task.dtype, operands[1], begin, count);
    if (clips_in_buffer(task)) {
      apply_clipped(kernel, task, operands, begin, count);
    } else {
      kernel(task.constants, operands, begin, count, task.factor, task.average_weight);
    }
    if (task.average_is_new || (moves && in_double)) {
      void* const average = element(task.dtype, operands[task.operand_count - 1], begin);
      const void* const param = element(task.dtype, operands[0], begin);
      if (task.average_is_new) {
        std::memcpy(average, param, size_t(count) * size_of(task.dtype));
      } else {
        set_.passes.move_average(param, average, count, task.average_weight);
      }
    }
    if (options_.zero_grad) zero(task.dtype, operands[1], begin, count);
  }

  // Updates elements from `begin` of the operands on, of which the first is number `first` of the task.
  void update_mixed(const Task& task, void* const* operands, int64_t begin, int64_t first, int64_t count) const {
    if (options_.unscale) unscale(task.dtypes[1], operands[1], begin, count);
    void* at[kMaxOperands];
    for (int k = 0; k < task.operand_count; ++k) at[k] = element(task.dtypes[k], operands[k], begin);
    set_.rules[task.rule]->mixed[task.variant](task, at, first, count, task.factor);
    if (options_.zero_grad) zero(task.dtypes[1], operands[1], begin, count);
  }

  static char* element(DType dtype, void* operand, int64_t number) {
    return static_cast<char*>(operand) + size_t(number) * size_of(dtype);
  }
  void unscale(DType dtype, void* grads, int64_t begin, int64_t count) const {
    char* const grad = element(dtype, grads, begin);
    set_.passes.unscale[int(dtype)](grad, grad, count, options_.grad_scale);
  }
  static void zero(DType dtype, void* grads, int64_t begin, int64_t count) {
    std::memset(element(dtype, grads, begin), 0, size_t(count) * size_of(dtype));
  }

  // The same task, for the kernel that takes any storage.
  static Task as_mixed(const Task& task) {
    Task mixed = task;
    mixed.mixed = true;
    for (int k = 0; k < task.operand_count; ++k) mixed.dtypes[k] = task.dtype, mixed.codings[k] = Coding::nearest;
    mixed.companion = Companion::none;
    mixed.blocks = {};
    return mixed;
  }

  // A clipped gradient of 16 bits is rounded to storage before the rule reads it: in a buffer, since grad must stay.
  static bool clips_in_buffer(const Task& task) { return size_of(task.dtype) == 2 && std::fabs(task.factor) != 1; }

  void apply_clipped(Kernel kernel, const Task& task, void* const* operands, int64_t begin, int64_t count) const {
    alignas(64) uint16_t clipped[kBlock];
    void* at[kMaxOperands];
    for (int k = 0; k < task.operand_count; ++k) at[k] = static_cast<uint16_t*>(operands[k]) + begin;
    set_.passes.scale[int(task.dtype)](at[1], clipped, count, task.factor);
    at[1] = clipped;
    kernel(task.constants, at, 0, count, 1, task.average_weight);
  }

  void strided(const Task& task, int64_t begin, int64_t count) const {
    alignas(64) char scratch[kMaxOperands][kStridedBlock * sizeof(double)];
    void* operands[kMaxOperands];
    for (int k = 0; k < task.operand_count; ++k) {
      operands[k] = scratch[k];
      as_integers(size_of(task.dtype_of(k)), [&](auto integer) {
        const auto* from = static_cast<const decltype(integer)*>(task.operands[k]);
        gather(*task.layout, k, from, begin, count, static_cast<decltype(integer)*>(operands[k]));
      });
    }
    if (task.mixed) {
      update_mixed(task, operands, 0, begin, count);
    } else {
      update(task, operands, 0, count);
    }
    for (int k = 0; k < task.operand_count; ++k) {
      if (k == 1 && !options_.zero_grad && !options_.unscale) continue;
      as_integers(size_of(task.dtype_of(k)), [&](auto integer) {
        auto* const to = static_cast<decltype(integer)*>(task.operands[k]);
        scatter(*task.layout, k, to, begin, count, static_cast<const decltype(integer)*>(operands[k]));
      });
    }
  }

  // Calls `work` with an integer of this size.
  template <class Work>
  static void as_integers(size_t size, Work work) {
    size == 8 ? work(uint64_t()) : size == 4 ? work(uint32_t()) : size == 2 ? work(uint16_t()) : work(uint8_t());
  }

  const RunOptions& options_;
  const InstructionSet& set_;
};

}  // namespace

void Schedule::plan(const Task* tasks, size_t count, const RunOptions& options) {
  options_ = options;
  elements_ = 0;
  chunks_.clear();
  units_.clear();
  int64_t in_unit = kChunk;
  for (const Task* task = tasks; task != tasks + count; ++task) {
    elements_ += task->count;
    const bool has_blocks = task->mixed && task->blocks.columns != 0;
    for (int64_t at = 0, n; at < task->count; at += n) {
      if (in_unit >= kChunk) {
        units_.push_back(chunks_.size());
        in_unit = 0;
      }
      n = std::min(kChunk, task->count - at);
      if (has_blocks) n = task->cut(at, n);
      chunks_.push_back({task, at, n});
      in_unit += n;
    }
  }
  units_.push_back(chunks_.size());
  threads_ = options.in_order ? 1 : int(std::clamp<int64_t>(elements_ / kPerThread, 1, std::max(options.threads, 1)));
}

void Schedule::run(const InstructionSet& set) const noexcept {
  const Runner runner(options_, set);
  parallel_for(int64_t(units_.size()) - 1, threads_, options_.backwards, [&](int64_t unit) {
    for (size_t i = units_[unit]; i < units_[unit + 1]; ++i) runner(chunks_[i]);
  });
}

void zero_grads(const std::vector<Task>& tasks) noexcept {
  for (const Task& task : tasks) {
    if (task.count == 0) continue;  // its gradient may have no memory at all
    const size_t size = size_of(task.dtype_of(1));
    if (task.layout == nullptr) {
      std::memset(task.operands[1], 0, size_t(task.count) * size);
    } else {
      for_each_offset(*task.layout, 1, 0, task.count, [&](int64_t, int64_t at) {
        std::memset(static_cast<char*>(task.operands[1]) + at * int64_t(size), 0, size);
      });
    }
  }
}

void zero(const std::vector<Span>& spans, int threads) {
  constexpr int64_t kBytes = int64_t(1) << 18, kBytesPerThread = int64_t(1) << 19;
  int64_t total = 0;
  for (const Span& span : spans) total += span.bytes;
  if (threads <= 1 || total < 2 * kBytesPerThread) {
    for (const Span& span : spans) {
      if (span.bytes > 0) std::memset(span.data, 0, size_t(span.bytes));
    }
    return;
  }
  std::vector<Span> pieces;
  for (const Span& span : spans) {
    for (int64_t at = 0; at < span.bytes; at += kBytes) {
      pieces.push_back({static_cast<char*>(span.data) + at, std::min(kBytes, span.bytes - at)});
    }
  }
  parallel_for(int64_t(pieces.size()), threads, false,
               [&](int64_t i) { std::memset(pieces[i].data, 0, size_t(pieces[i].bytes)); });
}

}  // namespace fusedoptim::cpu
