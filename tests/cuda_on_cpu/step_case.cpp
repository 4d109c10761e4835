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

using fusedoptim::Blocks;
using fusedoptim::Coding;
using fusedoptim::Companion;
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
  DType dtype;
  int64_t lead;  // elements ahead of it
  Memory device, expected;

  size_t size() const { return fusedoptim::size_of(dtype); }
};

// What operand k of a row has beside it if it is a state in 8 bits: a scale for each block.
int64_t blocks_of(const RowCase& row) { return row.count == 0 ? 0 : Blocks{row.columns}.of(row.count - 1) + 1; }

int64_t chunks_of_row(const RowCase& row) {
  const int64_t elements = row.columns != 0 ? blocks_of(row) * fusedoptim::kBlockOf8Bits : row.count;
  return (elements + kChunk - 1) / kChunk;
}

struct StoredNumber {
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

// The numbers of a row, the step first, and where they lie.
struct RowNumbers {
  std::vector<StoredNumber> stored;

  fusedoptim::cuda::StepNumbers places() const {
    fusedoptim::cuda::StepNumbers places{};
    for (size_t i = 0; i < stored.size(); ++i) {
      (i == 0 ? places.step : places.others[i - 1]) = stored[i].memory.data();
      places.are_double |= int64_t(stored[i].is_double) << i;
    }
    return places;
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
      : step_(step), rule_(all_rules()[step.rule]), guard_(guard), random_(step.seed) {
    make_options();
    for (const RowCase& row : step_.rows) add_row(row);
    for (size_t row = 0; row < step_.rows.size(); ++row) {
      int index = step_.rows[row].first_chunk;
      for (int64_t i = 0; i < chunks_of_row(step_.rows[row]); ++i) chunks_.push_back({int(row), index++});
    }
  }

  int64_t run() {
    run_kernel();
    run_expected();
    return compare();
  }

 private:
  // A rule's numbers lie with the step, and with them on the device it is folded there.
  Fold fold() const { return rule_.number_count > 0 && step_.fold != Fold::kOnHost ? Fold::kOnDevice : step_.fold; }
  bool on_device() const { return fold() == Fold::kOnDevice || fold() == Fold::kOnDeviceHostStep; }
  bool counts() const { return fold() == Fold::kOnDevice || fold() == Fold::kOnHostCounting; }
  bool in_double() const { return !step_.mixture && step_.dtype == DType::f64; }
  Companion companion() const { return step_.mixture ? step_.mixture->companion : Companion::none; }
  DType dtype_of(int k) const { return step_.mixture ? step_.mixture->operands[size_t(k)].dtype : step_.dtype; }
  Coding coding_of(int k) const { return step_.mixture ? step_.mixture->operands[size_t(k)].coding : Coding::nearest; }
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
    const int operands =
        operands_of(step_.rule, step_.variant) + (step_.averages ? 1 : 0) + (companion() != Companion::none ? 1 : 0);
    std::vector<Operand>& made = operands_.emplace_back();
    for (int k = 0; k < operands; ++k) made.push_back(make_operand(row, k));
    if (companion() != Companion::none) make_companion(made.front(), made.back());
    std::vector<Operand>& scales = scales_.emplace_back();
    for (int k = 2; k < operands; ++k) {
      if (is_8bit(coding_of(k))) scales.push_back(make_scales(row, k));
    }

    if (counts() && !(row.shares_step && !counts_.empty())) {
      RowNumbers& made = counts_.emplace_back();
      for (int i = 0; i <= rule_.number_count; ++i) {
        const bool is_double = (counts_.size() + size_t(i)) % 2 == 0;
        const double value = i == 0 ? row.step : 0.125 * double(1 + random_() % 7);
        made.stored.push_back({is_double, value, number(value, is_double)});
      }
    }
    count_of_row_.push_back(counts() ? int(counts_.size()) - 1 : -1);

    fusedoptim::cuda::Row table{};
    const int64_t before = int64_t(row.first_chunk) * kChunk;  // elements that have no memory at all
    for (int k = 0; k < operands; ++k) {
      const auto at = reinterpret_cast<uintptr_t>(begin(made[k], made[k].device)) - uintptr_t(before) * made[k].size();
      table.operands[k] = reinterpret_cast<void*>(at);
    }
    for (size_t i = 0; i < scales.size(); ++i) {
      table.scales[scale_place(int(i)) - 2] = reinterpret_cast<float*>(scales[i].device.data());
    }
    if (!scales.empty()) table.columns = row.columns;
    table.seed = step_.seed * 0x9e3779b97f4a7c15;
    table.parameter = uint32_t(rows_.size() * 77);
    table.first_element = row.first_element;
    table.count = before + row.count;
    table.layout = row.strides == nullptr ? fusedoptim::cuda::kNoLayout : int64_t(layouts_.size());
    if (fold() == Fold::kOnDevice) table.numbers = counts_.back().places();
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
    const DType dtype = dtype_of(k);
    const size_t size = fusedoptim::size_of(dtype);
    Memory memory(size_t(lead + extent + guard_) * size);
    const bool is_second_moment = k > 2;  // of which the rules take the square root
    for (int64_t i = 0; i < lead + extent + guard_; ++i) {
      const uint64_t bits =
          random_number(dtype, !is_second_moment, random_, step_.mixture.has_value() && step_.mixture->plain);
      std::memcpy(memory.data() + size_t(i) * size, &bits, size);
    }
    Memory expected = Memory::copy(memory.data(), memory.bytes());
    const char* const names[] = {"param", "grad"};
    return {k < 2 ? names[k] : "state " + std::to_string(k - 2), dtype, lead, std::move(memory), std::move(expected)};
  }

  // Numbers that go with those of the parameter: of most it is their master rounded, of the others it has been changed.
  void make_companion(const Operand& param, Operand& made) {
    made.name = "companion";
    const auto count = int64_t(std::min(param.device.bytes() / param.size() - size_t(param.lead),
                                        made.device.bytes() / made.size() - size_t(made.lead)));
    for (int64_t i = 0; i < count && companion() != Companion::compensation; ++i) {
      uint32_t bits = uint32_t(load_number(param.dtype, begin(param, param.device) + i * int64_t(param.size())));
      if (companion() == Companion::remainder) {
        bits = uint32_t(random_());
      } else if (param.dtype == DType::f16) {  // of a normal number, whose exponent has another bias here
        bits = (bits & 0x8000) << 16 | ((bits & 0x7fff) << 13) + (112u << 23) + (random_() & 0xfff);
      } else {
        bits = (bits << 16) + uint32_t(int32_t(int16_t(random_())));
      }
      if (companion() == Companion::master && random_() % 4 == 0) continue;
      char* const at = begin(made, made.device) + i * int64_t(made.size());
      std::memcpy(at, &bits, made.size());
    }
    std::memcpy(made.expected.data(), made.device.data(), made.device.bytes());
  }

  // A power of two for each block, or NaN.
  Operand make_scales(const RowCase& row, int k) {
    std::vector<float> scales;
    for (int64_t i = 0; i < blocks_of(row) + guard_; ++i) {
      scales.push_back(random_() % 16 == 0 ? NAN : std::ldexp(1.0f, int(random_() % 12) - 6));
    }
    return {"scale of state " + std::to_string(k - 2), DType::f32, 0, Memory::copy(scales), Memory::copy(scales)};
  }

  // The operand to which the scales of number i of a row belong.
  int scale_place(int i) const {
    int k = 2;
    for (;; ++k) {
      if (is_8bit(coding_of(k)) && i-- == 0) return k;
    }
  }

  char* begin(const Operand& operand, const Memory& memory) const {
    return memory.data() + size_t(operand.lead) * operand.size();
  }

  // ---- the kernel ----
  void run_kernel() {
    const fusedoptim::cuda::KernelHandle handle = fusedoptim::cuda::step_kernel(step_.rule, step_.variant, in_double());
    if (handle == nullptr) throw Mismatch("there is no such kernel");
    const auto kernel = reinterpret_cast<void (*)(StepLaunch)>(const_cast<void*>(handle));

    std::vector<fusedoptim::cuda::StepNumbers> counts;
    for (const RowNumbers& row : counts_) counts.push_back(row.places());
    const Constant rows("the table of rows", rows_), chunks("the table of chunks", chunks_);
    const Constant count_table("the table of step counts", counts), layouts("the table of layouts", layouts_);
    const Constant found_inf("found_inf", std::vector<float>{step_.found_inf.value_or(0)});
    const Constant grad_scale("grad_scale", std::vector<float>{step_.grad_scale.value_or(0)});
    const Constant norm("the norm", std::vector<double>{kNorm});
    const Constant ticket("the ticket", std::vector<unsigned>{0});

    StepLaunch launch{};
    launch.rows = rows.at<fusedoptim::cuda::Row>();
    launch.chunks = chunks.at<fusedoptim::cuda::Chunk>();
    launch.counts = count_table.at<fusedoptim::cuda::StepNumbers>();
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
    for (size_t k = 0; k < operands_[0].size(); ++k) {
      launch.formats[k] = fusedoptim::cuda::format_of(dtype_of(int(k)), coding_of(int(k)));
      launch.sizes[k] = int(fusedoptim::size_of(dtype_of(int(k))));
    }
    launch.companion = companion();
    launch.averages = step_.averages;
    launch.average_is_new = step_.average_is_new;
    launch.average_weight = kAverageWeights[step_.seed % 2];
    launch.zero_grad = step_.zero_grad;
    launch.computes_constants = on_device();
    // Only of rows without a step count on the device; nothing may read it elsewhere.
    launch.step = fold() == Fold::kOnDevice ? NAN : step_.rows[0].step + 1;
    if (on_device()) {
      std::memcpy(launch.rule, launch_options_.bytes, rule_.option_bytes);
      for (const Number& number : numbers_) {
        launch.numbers[launch.number_count++] = {number.memory.data(), number.is_double, number.option};
      }
    } else {
      rule_.fold(options_.bytes, numbers_of(0), in_double(), launch.rule);
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

  fusedoptim::Numbers numbers_of(size_t row) const {
    if (fold() == Fold::kOnDevice) return advanced(counts_[size_t(count_of_row_[row])]);
    fusedoptim::Numbers numbers;
    numbers.step = step_.rows[0].step + 1;
    for (int i = 0; i < rule_.number_count; ++i) numbers.before[i] = 0.25 * (i + 1);
    rule_.advance(options_.bytes, numbers);
    return numbers;
  }

  fusedoptim::Numbers advanced(const RowNumbers& row) const {
    fusedoptim::Numbers numbers;
    numbers.step = row.stored[0].before + 1;
    for (int i = 0; i < rule_.number_count; ++i) numbers.before[i] = row.stored[size_t(i) + 1].before;
    rule_.advance(options_.bytes, numbers);
    for (int i = 0; i < rule_.number_count; ++i) {
      if (!row.stored[size_t(i) + 1].is_double) numbers.after[i] = float(numbers.after[i]);
    }
    return numbers;
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
      rule_.fold(options_.bytes, numbers_of(i), in_double(), constants[i].bytes);
      task.constants = constants[i].bytes;
      for (size_t k = 0; k < operands_[i].size(); ++k) {
        task.operands[k] = begin(operands_[i][k], operands_[i][k].expected);
      }
      task.count = step_.rows[i].count;
      task.next_step = numbers_of(i).step;
      if (step_.mixture) {
        task.mixed = true;
        for (int k = 0; k < task.operand_count; ++k) {
          task.dtypes[k] = dtype_of(k);
          task.codings[k] = coding_of(k);
        }
        for (size_t n = 0; n < scales_[i].size(); ++n) {
          task.scales[scale_place(int(n))] = reinterpret_cast<float*>(scales_[i][n].expected.data());
        }
        task.blocks.columns = rows_[i].columns;
        task.companion = companion();
        task.seed = rows_[i].seed;
        task.parameter = rows_[i].parameter;
        task.first_element = rows_[i].first_element + int64_t(step_.rows[i].first_chunk) * kChunk;
      }
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
      for (const Operand& scales : scales_[row]) compared += compare(row, scales);
    }
    for (const RowNumbers& row : counts_) {
      const fusedoptim::Numbers numbers = advanced(row);
      for (size_t i = 0; i < row.stored.size(); ++i) {
        const double after = i == 0 ? numbers.step : numbers.after[i - 1];
        const double wanted = skips() ? row.stored[i].before : after, value = row.stored[i].value();
        if (value == wanted || (value != value && wanted != wanted)) continue;
        throw Mismatch((i == 0 ? "a step count is " : "a number beside a step count is ") + std::to_string(value) +
                       " and should be " + std::to_string(wanted));
      }
    }
    return compared;
  }

  int64_t compare(size_t row, const Operand& operand) const {
    const auto elements = int64_t(operand.device.bytes() / operand.size());
    if (operand.device.equals(operand.expected.data())) return elements;
    for (int64_t i = 0; i < elements; ++i) {
      const uint64_t got = load_number(operand.dtype, operand.device.data() + size_t(i) * operand.size());
      const uint64_t wanted = load_number(operand.dtype, operand.expected.data() + size_t(i) * operand.size());
      if (same_number(operand.dtype, got, wanted)) continue;
      const RowCase& which = step_.rows[row];
      char misaligned[16];
      std::snprintf(misaligned, sizeof(misaligned), "0x%x", which.misaligned);
      throw Mismatch("row " + std::to_string(row) + " of " + std::to_string(which.count) +
                     (which.strides != nullptr ? " strided" : "") + " elements, misaligned operands " + misaligned +
                     ": " + operand.name + "[" + std::to_string(i - operand.lead) + "] is " +
                     hexadecimal(operand.dtype, got) + " and should be " + hexadecimal(operand.dtype, wanted));
    }
    return elements;
  }

  const StepCase& step_;
  const AnyRule& rule_;
  const int guard_;
  Random random_;
  Constants options_{}, launch_options_{};
  std::vector<Number> numbers_;
  std::vector<std::vector<Operand>> operands_;  // of each row
  std::vector<std::vector<Operand>> scales_;    // of each row, of its states in 8 bits
  std::vector<RowNumbers> counts_;
  std::vector<int> count_of_row_;
  std::vector<fusedoptim::cuda::Row> rows_;
  std::vector<fusedoptim::cuda::Chunk> chunks_;
  std::vector<int64_t> layouts_;
};

}  // namespace

int operands_of(int rule, int variant) { return 2 + fusedoptim::count_of(all_rules()[rule].states_of(variant)); }

int64_t chunks_of(const std::vector<RowCase>& rows) {
  int64_t chunks = 0;
  for (const RowCase& row : rows) chunks += chunks_of_row(row);
  return chunks;
}

namespace {

std::string describe(const Mixture& mixture) {
  constexpr const char* kCodings[] = {"", " stochastic", " magnitude", " sign"};
  constexpr const char* kNames[] = {"", ", master", ", remainder", ", compensation"};
  std::string text;
  for (const Mixture::Stored& one : mixture.operands) {
    text += (text.empty() ? "" : ", ") + std::string(name_of(one.dtype)) + kCodings[int(one.coding)];
  }
  return " (" + text + kNames[int(mixture.companion)] + ")";
}

}  // namespace

std::string describe(const StepCase& step) {
  constexpr const char* kFolds[] = {"the host", "the host, counting on the device", "the device",
                                    "the device, counting on the host"};
  const auto optional = [](const std::optional<float>& x) { return x.has_value() ? std::to_string(*x) : "none"; };
  return all_rules()[step.rule].name + " variant " + std::to_string(step.variant) + " " +
         (step.mixture ? "mixed" + describe(*step.mixture) : name_of(step.dtype)) +
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
