// Runs a translated kernel on each row of numbers that stdin holds: PROGRAM KERNEL THREADS.
// A row is 64-bit words in hexadecimal; so is the row of results that comes out for it.
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "ptx_kernels.h"
#include "runtime.h"

// The parameter of all these kernels.
struct alignas(16) Snippet {
  const uint64_t* in;
  uint64_t* out;
  uint64_t numbers[4];
};

int main(int, char** arguments) {
  const auto* const kernel = cuda_on_cpu::find_ptx_kernel(arguments[1]);
  if (kernel == nullptr || kernel->param_bytes != std::vector<size_t>{sizeof(Snippet)}) return 2;
  const uint32_t threads = uint32_t(std::stoul(arguments[2]));
  for (std::string row; std::getline(std::cin, row);) {
    std::vector<uint64_t> in, out(16, 0xeeeeeeeeeeeeeeee);
    std::istringstream words(row);
    for (uint64_t word; words >> std::hex >> word;) in.push_back(word);
    const Snippet snippet{in.data(), out.data(), {10, 11, 12, 13}};
    const void* const params[] = {&snippet};
    try {
      cuda_on_cpu::run_grid({2, 1, 1}, {threads, 1, 1}, [&] { kernel->run(params); });
    } catch (const cuda_on_cpu::Fault& fault) {
      std::printf("fault: %s\n", fault.what());
      continue;
    }
    for (const uint64_t word : out) std::printf("%llx ", static_cast<unsigned long long>(word));
    std::printf("\n");
  }
}
