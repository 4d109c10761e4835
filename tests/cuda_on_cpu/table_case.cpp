#include "table_case.h"

#include <cstring>
#include <string>
#include <vector>

#include "cuda/buckets.h"
#include "step_case.h"

namespace cuda_on_cpu {
namespace {

using namespace fusedoptim;
using fusedoptim::cuda::Bucket;
using fusedoptim::cuda::Format;

constexpr int kOperands = 5;  // of Adam, with a companion

// bf16 with a remainder, and both states in 8 bits.
Task mixed_task(const void* constants, float* scales) {
  Task task{};
  task.rule = 1;
  task.mixed = true;
  task.operand_count = kOperands;
  for (int k = 0; k < kOperands; ++k) task.dtypes[k] = k == 2 || k == 3 ? DType::u8 : DType::bf16;
  task.codings[2] = Coding::sign;
  task.codings[3] = Coding::magnitude;
  task.companion = Companion::remainder;
  task.scales[2] = scales;
  task.scales[3] = scales + 1;
  task.constants = constants;
  task.count = 40 * 300;
  task.blocks.columns = 300;
  task.seed = 5;
  task.parameter = 6;
  task.first_element = 7;
  task.device = 0;
  return task;
}

void expect(bool is_so, const char* what) {
  if (!is_so) throw Mismatch(std::string("tables: ") + what);
}

int check_takes(const Task& first) {
  int tried = 0;
  const auto takes = [&](auto change) {
    Task other = first;
    change(other);
    ++tried;
    return Bucket{&first, nullptr, {}, {}}.takes(other);
  };
  expect(takes([](Task& t) { t.seed = t.parameter = 1, t.first_element = 2, t.count = 3; }), "one launch for each row");
  for (int k = 0; k < kOperands; ++k) {
    expect(!takes([=](Task& t) { t.dtypes[k] = DType::f32, t.codings[k] = Coding::nearest; }), "dtypes are mixed up");
  }
  expect(!takes([](Task& t) { t.codings[0] = Coding::stochastic; }), "roundings are mixed up");
  expect(!takes([](Task& t) { t.companion = Companion::compensation; }), "companions are mixed up");
  expect(!takes([](Task& t) { t.next_step = 9; }), "random bits of the first row's step");
  static const double count = 0;
  const auto on_device = [](Task& t) { t.step.at = &count; };
  Task counted = first, later = first;
  on_device(counted), on_device(later);
  later.next_step = 9;
  expect(Bucket{&counted, nullptr, {}, {}}.takes(later), "the host's step where the device counts");
  Task plain = first, plain_later = first;
  for (Task* task : {&plain, &plain_later}) task->dtypes[3] = DType::f32, task->codings[3] = Coding::nearest;
  plain_later.next_step = 9;
  expect(Bucket{&plain, nullptr, {}, {}}.takes(plain_later), "steps that nothing reads");
  return tried + 2;
}

void check_rows(const Task& task, const float* scales) {
  Bucket bucket{&task, nullptr, {}, {}};
  bucket.add(task);
  const cuda::Row& row = bucket.rows[0];
  expect(row.scales[0] == scales && row.scales[1] == scales + 1 && row.scales[2] == nullptr, "scales");
  expect(row.columns == 300 && row.count == task.count, "columns");
  expect(row.seed == 5 && row.parameter == 6 && row.first_element == 7, "the key of random bits");
  for (int k = 0; k < kOperands; ++k) {
    constexpr Format kFormats[] = {Format::bf16, Format::bf16, Format::sign, Format::magnitude, Format::bf16};
    expect(cuda::format_of(task, k) == kFormats[k], "formats");
  }
  // 300 columns are two blocks, and 80 of these more than two chunks hold.
  std::vector<char> table;
  const cuda::Shape shape = cuda::write_step_table(bucket.rows, {}, table);
  expect(shape.chunk_count == 3, "blocks of 8 bits are cut like other elements");
  bucket.rows[0].columns = 0;
  expect(cuda::write_step_table(bucket.rows, {}, table).chunk_count == 2, "elements are cut like blocks of 8 bits");
}

}  // namespace

int check_tables() {
  const std::vector<char> constants(kMaxRuleBytes);
  float scales[2];
  const Task task = mixed_task(constants.data(), scales);
  check_rows(task, scales);
  return check_takes(task);
}

}  // namespace cuda_on_cpu
