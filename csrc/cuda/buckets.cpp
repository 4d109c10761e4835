#include "cuda/buckets.h"

#include <algorithm>
#include <cstring>
#include <functional>

namespace fusedoptim::cuda {
namespace {

bool same_options(const DeviceOptions& a, const DeviceOptions& b) {
  const auto same_number = [](const DeviceNumber& x, const DeviceNumber& y) {
    return x.at == y.at && x.is_double == y.is_double && x.option == y.option;
  };
  return &a == &b ||
         (std::memcmp(a.options, b.options, kMaxRuleBytes) == 0 &&
          std::equal(a.numbers, a.numbers + a.number_count, b.numbers, b.numbers + b.number_count, same_number));
}

bool same_constants(const Task& task, const Task& first) {
  if (task.device_options == nullptr) {
    return task.constants == first.constants || std::memcmp(task.constants, first.constants, kMaxRuleBytes) == 0;
  }
  return (task.step.at != nullptr) == (first.step.at != nullptr) && task.next_step == first.next_step &&
         same_options(*task.device_options, *first.device_options);
}

bool has_random_bits(const Task& task) {
  for (int k = 0; task.mixed && k < task.operand_count; ++k) {
    if (is_random(format_of(task, k))) return true;
  }
  return false;
}

bool same_storage(const Task& a, const Task& b) {
  bool same = a.companion == b.companion && a.operand_count == b.operand_count;
  for (int k = 0; same && k < a.operand_count; ++k) same = format_of(a, k) == format_of(b, k);
  return same;
}

// Of random bits rounded up or down: by the step count, which constants do not always tell.
bool same_random_step(const Task& a, const Task& b) {
  return a.step.at != nullptr || a.next_step == b.next_step || !has_random_bits(a);
}

bool same_limit(const Task& a, const Task& b) {
  return a.norm == nullptr || std::memcmp(&a.max_norm, &b.max_norm, sizeof(double)) == 0;  // NaN as well
}

template <class T>
size_t append(std::vector<char>& to, const std::vector<T>& entries) {
  static_assert(alignof(T) <= 8 && sizeof(T) % 8 == 0);  // then every part begins aligned
  const size_t begin = to.size();
  const char* from = reinterpret_cast<const char*>(entries.data());
  to.insert(to.end(), from, from + entries.size() * sizeof(T));
  return begin;
}

void cut(std::vector<Chunk>& chunks, size_t row, int64_t count, int64_t chunk) {
  for (int64_t i = 0; i * chunk < count; ++i) chunks.push_back({int32_t(row), int32_t(i)});
}

// Blocks of 8 bits count as if all of them were whole.
int64_t elements_to_cut(const Row& row) {
  if (row.columns == 0 || row.count == 0) return row.count;
  return (Blocks{row.columns}.of(row.count - 1) + 1) * kBlockOf8Bits;
}

}  // namespace

Format format_of(const Task& task, int operand) {
  return task.mixed ? format_of(task.dtypes[operand], task.codings[operand]) : Format(task.dtype);
}

bool Bucket::takes(const Task& task) const {
  return task.device == first->device && task.rule == first->rule && task.variant == first->variant &&
         same_storage(task, *first) && task.factor == first->factor && task.norm == first->norm &&
         same_limit(task, *first) && task.averages == first->averages && task.average_is_new == first->average_is_new &&
         task.average_weight == first->average_weight &&
         (task.device_options == nullptr) == (first->device_options == nullptr) && same_constants(task, *first) &&
         same_random_step(task, *first);
}

void Bucket::add(const Task& task) {
  Row row{};
  std::copy(task.operands, task.operands + task.operand_count, row.operands);
  row.count = task.count;
  if (task.mixed) {
    std::copy(task.scales + 2, task.scales + 2 + kMaxStates, row.scales);
    row.columns = task.blocks.columns;
  }
  if (has_random_bits(task)) {
    row.seed = task.seed;
    row.parameter = task.parameter;
    row.first_element = task.first_element;
  }
  row.numbers = {const_cast<void*>(task.step.at), {}, task.step.is_double};
  for (int i = 0; task.step.at != nullptr && i < kMaxNumbers; ++i) {
    row.numbers.others[i] = const_cast<void*>(task.numbers[i].at);
    row.numbers.are_double |= int64_t(task.numbers[i].is_double) << (i + 1);
  }
  row.layout = kNoLayout;
  if (task.layout != nullptr) {
    const Layout& layout = *task.layout;
    row.layout = int64_t(layouts.size());
    layouts.push_back(layout.ndim);
    layouts.insert(layouts.end(), layout.sizes, layout.sizes + layout.ndim);
    layouts.insert(layouts.end(), layout.strides, layout.strides + task.operand_count * layout.ndim);
  }
  rows.push_back(row);
}

Shape write_step_table(const std::vector<Row>& rows, const std::vector<int64_t>& layouts, std::vector<char>& out) {
  std::vector<Chunk> chunks;
  std::vector<StepNumbers> counts;
  for (size_t i = 0; i < rows.size(); ++i) {
    cut(chunks, i, elements_to_cut(rows[i]), kChunk);
    if (rows[i].numbers.step != nullptr) counts.push_back(rows[i].numbers);
  }
  using N = const StepNumbers&;
  std::sort(counts.begin(), counts.end(), [](N a, N b) { return std::less<>()(a.step, b.step); });
  counts.erase(std::unique(counts.begin(), counts.end(), [](N a, N b) { return a.step == b.step; }), counts.end());

  Shape shape;
  append(out, rows);
  shape.chunks = append(out, chunks);
  shape.counts = append(out, counts);
  shape.layouts = append(out, layouts);
  shape.ticket = append(out, std::vector<uint64_t>{0});
  shape.chunk_count = int32_t(chunks.size());
  shape.counts_count = int32_t(counts.size());
  return shape;
}

Shape write_zero_table(const std::vector<ZeroSpan>& spans, std::vector<char>& out) {
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < spans.size(); ++i) cut(chunks, i, spans[i].bytes, kZeroChunk);
  Shape shape;
  append(out, spans);
  shape.chunks = append(out, chunks);
  shape.chunk_count = int32_t(chunks.size());
  return shape;
}

Shape write_norm_table(const std::vector<NormRow>& rows, const std::vector<int64_t>& layouts, std::vector<char>& out) {
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < rows.size(); ++i) cut(chunks, i, rows[i].count, kChunk);
  Shape shape;
  append(out, rows);
  shape.chunks = append(out, chunks);
  shape.layouts = append(out, layouts);
  shape.ticket = append(out, std::vector<uint64_t>(rows.size() / 2 + 1));  // two to each, one for all rows among them
  shape.chunk_count = int32_t(chunks.size());
  return shape;
}

}  // namespace fusedoptim::cuda
