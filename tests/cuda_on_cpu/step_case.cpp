#include "step_case.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <utility>

#include "any_rule.h"
#include "cpu/run.h"
#include "cuda/launch.h"
#include "runtime.h"

namespace cuda_on_cpu {
namespace {

constexpr double kNorm = 1.7;                       // of gradients that are clipped by it
constexpr double kAverageWeights[] = {0.001, 0.7};  // from the near end, and from the far one

using fusedoptim::Task;
using fusedoptim::cuda::kChunk;
using fusedoptim::cuda::StepLaunch;

// Exactly as many bytes as asked for, at a multiple of 16, so that the first byte beyond is not the program's.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes), data_(static_cast<char*>(std::malloc(bytes))) {}
  ~Memory() { std::free(data_); }
  Memory(Memory&& other) noexcept : bytes_(other.bytes_), data_(std::exchange(other.data_, nullptr)) {}
  static Memory copy(const void* from, size_t bytes) {
    Memory memory(bytes);
    std::memcpy(memory.data_, from, bytes);
    return memory;
  }
  template <class T>
  static Memory copy(const std::vector<T>& from) {
    return copy(from.data(), from.size() * sizeof(T));
  }

  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool equals(const void* other) const { return std::memcmp(data_, other, bytes_) == 0; }

 private:
  size_t bytes_;
  char* data_;
};

// Input of the kernel, which must be the same afterwards.
class Constant {
 public:
  template <class T>
  Constant(const char* name, const std::vector<T>& values)
      : name_(name), memory_(Memory::copy(values)), before_(Memory::copy(values)) {}
  template <class T>
  const T* at() const {
    return reinterpret_cast<const T*>(memory_.data());
  }
  void check() const {
    if (!memory_.equals(before_.data())) throw Mismatch(std::string(name_) + " was written to");
  }

 private:
  const char* name_;
  Memory memory_, before_;
};

struct Operand {
  std::string name;
  int64_t lead;  // elements ahead of it
  Memory device, expected;
};

struct StepCount {
  bool is_double;
  double before;
  Memory memory;

  double value() const {
    float single;
    double value;
    if (is_double) {
      std::memcpy(&value, memory.data(), sizeof(value));
    } else {
      std::memcpy(&single, memory.data(), sizeof(single));
      value = single;
    }
    return value;
  }
};

Memory number(double value, bool is_double) {
  const auto single = float(value);
  return is_double ? Memory::copy(&value, sizeof(value)) : Memory::copy(&single, sizeof(single));
}

struct alignas(16) Constants {
  unsigned char bytes[fusedoptim::kMaxRuleBytes];
};

// ---- a launch and what is expected of it ---------------------------------------------------------------------------
class Check {
 public:
  Check(const StepCase& step, int guard)
      : step_(step),
        rule_(all_rules()[step.rule]),
        guard_(guard),
        size_(fusedoptim::size_of(step.dtype)),
        random_(step.seed) {
    make_options();
    for (const RowCase& row : step_.rows) add_row(row);
    for (size_t row = 0; row < step_.rows.size(); ++row) {
      int index = step_.rows[row].first_chunk;
      for (int64_t at = 0; at < step_.rows[row].count; at += kChunk) chunks_.push_back({int(row), index++});
    }
  }

  int64_t run() {
    run_kernel();
    run_expected();
    return compare();
  }

 private:
  bool on_device() const { return step_.fold == Fold::kOnDevice || step_.fold == Fold::kOnDeviceHostStep; }
  bool counts() const { return step_.fold == Fold::kOnDevice || step_.fold == Fold::kOnHostCounting; }
  bool skips() const { return step_.found_inf.has_value() && *step_.found_inf != 0; }

  // The options of the expected step, and those in the launch: where an option lies on the device, the launch holds
  // another number, which nothing may read.
  void make_options() {
    constexpr double kValues[] = {1e-3, 0.01, 0.1, 0.3, 0.5, 0.75, 0.9, 0.99, 0.999};
    std::vector<double> values(rule_.option_doubles), hidden;
    for (double& value : values) value = kValues[random_() % std::size(kValues)];
    hidden = values;
    for (int i = 0; i < step_.device_numbers; ++i) {
      const bool is_double = i % 2 == 1;
      const int option = (i * 3 + int(step_.seed)) % rule_.option_doubles;
      if (hidden[option] != values[option]) continue;  // already on the device
      if (!is_double) values[option] = float(values[option]);
      numbers_.push_back({number(values[option], is_double), is_double, option});
      hidden[option] = 123456;
    }
    const bool flag = random_() & 1;
    rule_.set_options(options_.bytes, values.data(), flag);
    rule_.set_options(launch_options_.bytes, hidden.data(), flag);
  }

  struct Number {
    Memory memory;
    bool is_double;
    int option;
  };

  void add_row(const RowCase& row) {
    const int operands = operands_of(step_.rule, step_.variant) + (step_.averages ? 1 : 0);
    std::vector<Operand>& made = operands_.emplace_back();
    for (int k = 0; k < operands; ++k) made.push_back(make_operand(row, k));

    if (counts() && !(row.shares_step && !counts_.empty())) {
      const bool is_double = counts_.size() % 2 == 1;
      counts_.push_back({is_double, row.step, number(row.step, is_double)});
    }
    const StepCount* const count = counts() ? &counts_.back() : nullptr;
    count_of_row_.push_back(count == nullptr ? -1 : int(counts_.size()) - 1);

    fusedoptim::cuda::Row table{};
    const int64_t before = int64_t(row.first_chunk) * kChunk;  // elements that have no memory at all
    for (int k = 0; k < operands; ++k) {
      const auto at = reinterpret_cast<uintptr_t>(begin(made[k], made[k].device)) - uintptr_t(before) * size_;
      table.operands[k] = reinterpret_cast<void*>(at);
    }
    table.count = before + row.count;
    table.layout = row.strides == nullptr ? fusedoptim::cuda::kNoLayout : int32_t(layouts_.size());
    if (step_.fold == Fold::kOnDevice) {
      table.step = count->memory.data();
      table.step_is_double = count->is_double;
    }
    rows_.push_back(table);
    if (row.strides != nullptr) add_layout(*row.strides, operands);
  }

  void add_layout(const Strides& strides, int operands) {
    layouts_.push_back(int64_t(strides.sizes.size()));
    layouts_.insert(layouts_.end(), strides.sizes.begin(), strides.sizes.end());
    for (int k = 0; k < operands; ++k) {
      const std::vector<int64_t>& own = strides.of_operand[k % strides.of_operand.size()];
      layouts_.insert(layouts_.end(), own.begin(), own.end());
    }
  }

  Operand make_operand(const RowCase& row, int k) {
    int64_t extent = row.count;
    if (row.strides != nullptr) {
      const std::vector<int64_t>& strides = row.strides->of_operand[k % row.strides->of_operand.size()];
      extent = 1;
      for (size_t d = 0; d < strides.size(); ++d) extent += (row.strides->sizes[d] - 1) * strides[d];
    }
    const int64_t lead = row.misaligned >> k & 1;
    Memory memory(size_t(lead + extent + guard_) * size_);
    const bool is_second_moment = k > 2;  // of which the rules take the square root
    for (int64_t i = 0; i < lead + extent + guard_; ++i) {
      const uint64_t bits = random_number(step_.dtype, !is_second_moment, random_);
      std::memcpy(memory.data() + size_t(i) * size_, &bits, size_);
    }
    Memory expected = Memory::copy(memory.data(), memory.bytes());
    const char* const names[] = {"param", "grad"};
    return {k < 2 ? names[k] : "state " + std::to_string(k - 2), lead, std::move(memory), std::move(expected)};
  }

  char* begin(const Operand& operand, const Memory& memory) const {
    return memory.data() + size_t(operand.lead) * size_;
  }

  // ---- the kernel ----
  void run_kernel() {
    const fusedoptim::cuda::KernelHandle handle = fusedoptim::cuda::step_kernel(step_.rule, step_.variant, step_.dtype);
    if (handle == nullptr) throw Mismatch("there is no such kernel");
    const auto kernel = reinterpret_cast<void (*)(StepLaunch)>(const_cast<void*>(handle));

    std::vector<fusedoptim::cuda::Count> counts;
    for (const StepCount& count : counts_) counts.push_back({count.memory.data(), count.is_double});
    const Constant rows("the table of rows", rows_), chunks("the table of chunks", chunks_);
    const Constant count_table("the table of step counts", counts), layouts("the table of layouts", layouts_);
    const Constant found_inf("found_inf", std::vector<float>{step_.found_inf.value_or(0)});
    const Constant grad_scale("grad_scale", std::vector<float>{step_.grad_scale.value_or(0)});
    const Constant norm("the norm", std::vector<double>{kNorm});
    const Constant ticket("the ticket", std::vector<unsigned>{0});

    StepLaunch launch{};
    launch.rows = rows.at<fusedoptim::cuda::Row>();
    launch.chunks = chunks.at<fusedoptim::cuda::Chunk>();
    launch.counts = count_table.at<fusedoptim::cuda::Count>();
    launch.layouts = layouts.at<int64_t>();
    launch.ticket = const_cast<unsigned*>(ticket.at<unsigned>());
    launch.found_inf = step_.found_inf.has_value() ? found_inf.at<float>() : nullptr;
    launch.grad_scale = step_.grad_scale.has_value() ? grad_scale.at<float>() : nullptr;
    launch.chunk_count = int(chunks_.size());
    launch.counts_count = int(counts_.size());
    launch.factor = step_.maximize ? -1 : 1;
    if (step_.clip_on_device) {
      launch.norm = norm.at<double>();
      launch.max_norm = max_norm();
    } else {
      launch.factor *= step_.clip;
    }
    launch.averages = step_.averages;
    launch.average_is_new = step_.average_is_new;
    launch.average_weight = kAverageWeights[step_.seed % 2];
    launch.zero_grad = step_.zero_grad;
    launch.computes_constants = on_device();
    // Only of rows without a step count on the device; nothing may read it elsewhere.
    launch.step = step_.fold == Fold::kOnDevice ? NAN : step_.rows[0].step + 1;
    if (on_device()) {
      std::memcpy(launch.rule, launch_options_.bytes, rule_.option_bytes);
      for (const Number& number : numbers_) {
        launch.numbers[launch.number_count++] = {number.memory.data(), number.is_double, number.option};
      }
    } else {
      rule_.fold(options_.bytes, step_.rows[0].step + 1, step_.dtype == DType::f64, launch.rule);
    }

    run_grid({step_.grid, 1, 1}, {fusedoptim::cuda::kThreads, 1, 1}, [&] { kernel(launch); });
    for (const Constant* constant : {&rows, &chunks, &count_table, &layouts, &found_inf, &grad_scale, &norm, &ticket}) {
      constant->check();
    }
  }

  // ---- the CPU driver ----
  // As clip_coefficient() is to find it; NaN stays, and a clip of 1 comes of a norm far below the limit.
  double max_norm() const { return step_.clip == 1 ? 2 * kNorm : step_.clip * kNorm; }
  double clip() const {
    if (!step_.clip_on_device) return step_.clip;
    const double coefficient = max_norm() / (kNorm + 1e-6);
    return std::isnan(coefficient) ? NAN : std::min(coefficient, 1.0);
  }

  double step_of(size_t row) const {
    if (step_.fold == Fold::kOnDevice) return counts_[count_of_row_[row]].before + 1;
    return step_.rows[0].step + 1;
  }

  void run_expected() {
    std::vector<Constants> constants(rows_.size());
    std::vector<fusedoptim::Layout> layouts(rows_.size());
    std::vector<Task> tasks;
    for (size_t i = 0; i < rows_.size(); ++i) {
      Task task{};
      task.rule = step_.rule;
      task.variant = step_.variant;
      task.dtype = step_.dtype;
      task.operand_count = int(operands_[i].size());
      rule_.fold(options_.bytes, step_of(i), step_.dtype == DType::f64, constants[i].bytes);
      task.constants = constants[i].bytes;
      for (size_t k = 0; k < operands_[i].size(); ++k) {
        task.operands[k] = begin(operands_[i][k], operands_[i][k].expected);
      }
      task.count = step_.rows[i].count;
      if (rows_[i].layout != fusedoptim::cuda::kNoLayout) {
        const int64_t* const layout = &layouts_[rows_[i].layout];
        layouts[i] = {int(layout[0]), layout + 1, layout + 1 + layout[0]};
        task.layout = &layouts[i];
      }
      task.factor = step_.maximize ? -clip() : clip();
      task.averages = step_.averages;
      task.average_is_new = step_.average_is_new;
      task.average_weight = kAverageWeights[step_.seed % 2];
      tasks.push_back(task);
    }
    if (skips()) {
      if (step_.zero_grad) fusedoptim::cpu::zero_grads(tasks);
      return;
    }
    fusedoptim::RunOptions options;
    options.unscale = step_.grad_scale.has_value();
    options.grad_scale = step_.grad_scale.value_or(1);
    options.zero_grad = step_.zero_grad;
    fusedoptim::cpu::Schedule schedule;
    schedule.plan(tasks.data(), tasks.size(), options);
    schedule.run(*fusedoptim::cpu::baseline());
  }

  // ---- comparing ----
  int64_t compare() const {
    int64_t compared = 0;
    for (size_t row = 0; row < operands_.size(); ++row) {
      for (const Operand& operand : operands_[row]) compared += compare(row, operand);
    }
    for (const StepCount& count : counts_) {
      const double wanted = count.before + (skips() ? 0 : 1);
      if (count.value() != wanted) {
        throw Mismatch("a step count is " + std::to_string(count.value()) + " and should be " + std::to_string(wanted));
      }
    }
    return compared;
  }

  int64_t compare(size_t row, const Operand& operand) const {
    const auto elements = int64_t(operand.device.bytes() / size_);
    if (operand.device.equals(operand.expected.data())) return elements;
    for (int64_t i = 0; i < elements; ++i) {
      const uint64_t got = load_number(step_.dtype, operand.device.data() + size_t(i) * size_);
      const uint64_t wanted = load_number(step_.dtype, operand.expected.data() + size_t(i) * size_);
      if (same_number(step_.dtype, got, wanted)) continue;
      const RowCase& which = step_.rows[row];
      char misaligned[16];
      std::snprintf(misaligned, sizeof(misaligned), "0x%x", which.misaligned);
      throw Mismatch("row " + std::to_string(row) + " of " + std::to_string(which.count) +
                     (which.strides != nullptr ? " strided" : "") + " elements, misaligned operands " + misaligned +
                     ": " + operand.name + "[" + std::to_string(i - operand.lead) + "] is " +
                     hexadecimal(step_.dtype, got) + " and should be " + hexadecimal(step_.dtype, wanted));
    }
    return elements;
  }

  const StepCase& step_;
  const AnyRule& rule_;
  const int guard_;
  const size_t size_;
  Random random_;
  Constants options_{}, launch_options_{};
  std::vector<Number> numbers_;
  std::vector<std::vector<Operand>> operands_;  // of each row
  std::vector<StepCount> counts_;
  std::vector<int> count_of_row_;
  std::vector<fusedoptim::cuda::Row> rows_;
  std::vector<fusedoptim::cuda::Chunk> chunks_;
  std::vector<int64_t> layouts_;
};

}  // namespace

int operands_of(int rule, int variant) { return 2 + all_rules()[rule].states_of(variant); }

int64_t chunks_of(const std::vector<RowCase>& rows) {
  int64_t chunks = 0;
  for (const RowCase& row : rows) chunks += (row.count + kChunk - 1) / kChunk;
  return chunks;
}

std::string describe(const StepCase& step) {
  constexpr const char* kFolds[] = {"the host", "the host, counting on the device", "the device",
                                    "the device, counting on the host"};
  const auto optional = [](const std::optional<float>& x) { return x.has_value() ? std::to_string(*x) : "none"; };
  return all_rules()[step.rule].name + " variant " + std::to_string(step.variant) + " " + name_of(step.dtype) +
         (step.maximize ? ", maximize" : "") + (step.zero_grad ? ", zero_grad" : "") +
         (step.averages ? step.average_is_new ? ", new average" : ", average" : "") + ", clip " +
         std::to_string(step.clip) + (step.clip_on_device ? " on the device" : "") + ", grad_scale " +
         optional(step.grad_scale) + ", found_inf " + optional(step.found_inf) + ", folded on " +
         kFolds[int(step.fold)] + ", " + std::to_string(step.device_numbers) + " device numbers, grid " +
         std::to_string(step.grid) + ", seed " + std::to_string(step.seed);
}

int64_t check(const StepCase& step, int guard) {
  try {
    return Check(step, guard).run();
  } catch (const Mismatch& mismatch) {
    throw Mismatch(describe(step) + ": " + mismatch.what());
  } catch (const Fault& fault) {
    throw Fault(describe(step) + ": " + fault.what());
  }
}

}  // namespace cuda_on_cpu
