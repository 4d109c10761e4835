// Runs the CUDA kernels, compiled from their source for the host, and compares all that they leave in memory with what
// the CPU driver leaves there, bit for bit; NaNs equal NaNs.
//
//   source_level [--seed N] [--guard N] [--brief] [--storage NAME]
//
// --seed: of all numbers and of the order of blocks and threads, where 0 is ascending and 1 descending; --guard: how
// many elements behind each operand must stay as they are, 0 under AddressSanitizer, which watches the end of each
// block of memory; --brief: few launches; --storage: launches of one storage type, or `mixed`: where no other kernels
// are linked.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <tuple>

#include "covering.h"
#include "norm_case.h"
#include "runtime.h"
#include "table_case.h"
#include "zero_case.h"

namespace cuda_on_cpu {
namespace {

struct Arguments {
  uint64_t seed = 0;
  int guard = 16;
  bool brief = false;
  std::string storage;
};

Arguments parse(int count, char** values) {
  Arguments arguments;
  for (int i = 1; i < count; ++i) {
    const std::string name = values[i];
    const auto value = [&]() -> const char* {
      if (i + 1 < count) return values[++i];
      std::fprintf(stderr, "%s needs a value\n", name.c_str());
      std::exit(2);
    };
    if (name == "--seed") {
      arguments.seed = std::strtoull(value(), nullptr, 10);
    } else if (name == "--guard") {
      arguments.guard = std::atoi(value());
    } else if (name == "--brief") {
      arguments.brief = true;
    } else if (name == "--storage") {
      arguments.storage = value();
    } else {
      std::fprintf(stderr, "unknown argument %s\n", name.c_str());
      std::exit(2);
    }
  }
  return arguments;
}

void check_all(const Arguments& arguments) {
  std::set<std::tuple<int, int, DType>> kernels;
  int64_t launches = 0, elements = 0;
  for_each_step_case(arguments.storage, arguments.brief, arguments.seed, [&](const StepCase& step) {
    elements += check(step, arguments.guard);
    kernels.insert({step.rule, step.variant, step.dtype});
    ++launches;
  });
  const ZeroTotals zeroed = check_zero(arguments.brief, arguments.guard);
  const NormTotals normed = check_norm(arguments.brief, arguments.guard, arguments.seed);
  const int tables = check_tables();
  std::printf(
      "%zu step kernels, %lld launches, %lld elements compared; %lld launches zeroed %lld bytes; %lld launches "
      "measured or clipped %lld elements; %d tables: all correct\n",
      kernels.size(), static_cast<long long>(launches), static_cast<long long>(elements),
      static_cast<long long>(zeroed.launches), static_cast<long long>(zeroed.bytes),
      static_cast<long long>(normed.launches), static_cast<long long>(normed.elements), tables);
}

}  // namespace
}  // namespace cuda_on_cpu

int main(int count, char** values) {
  const cuda_on_cpu::Arguments arguments = cuda_on_cpu::parse(count, values);
  cuda_on_cpu::set_order(arguments.seed);
  try {
    cuda_on_cpu::check_all(arguments);
  } catch (const cuda_on_cpu::Mismatch& mismatch) {
    std::printf("wrong: %s\n", mismatch.what());
    return 1;
  } catch (const cuda_on_cpu::Fault& fault) {
    std::printf("fault: %s\n", fault.what());
    return 1;
  }
  return 0;
}
