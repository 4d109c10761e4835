// How many blocks a launch takes.
#pragma once

#include <algorithm>
#include <map>
#include <utility>

#include "cuda/launch.h"
#include "cuda/runtime.h"

namespace fusedoptim::cuda {

// Blocks of a launch for each that the device runs at once: several, to balance the load, but so few that each has
// several chunks to work on.
constexpr int kWaves = 4;

// How many blocks of a kernel a device runs at once; it must be the current one.
class Capacity {
 public:
  int blocks(int device, KernelHandle kernel, int chunks) {
    int& most = most_[{device, kernel}];
    if (most == 0) {
      int per_processor = 0, processors = 0;
      check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, kThreads, 0),
            "asking how many blocks fit");
      check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
            "asking for the number of multiprocessors");
      most = std::max(1, per_processor * processors * kWaves);
    }
    return std::clamp(chunks, 1, most);
  }

 private:
  std::map<std::pair<int, KernelHandle>, int> most_;
};

}  // namespace fusedoptim::cuda
