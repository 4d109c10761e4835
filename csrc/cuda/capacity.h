// How many blocks a launch takes.
#pragma once

#include <algorithm>
#include <map>
#include <utility>

#include "cuda/launch.h"
#include "cuda/runtime.h"

namespace fusedoptim::cuda {

// Blocks per place that the device has for one: more than one, so that those which finish early take others' work; few,
// so that each has several chunks to work on.
constexpr int kWaves = 4;

// What devices, of which the current one is asked, can run at once.
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
