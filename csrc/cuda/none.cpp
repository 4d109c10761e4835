// In place of the CUDA driver, where the build has none.
#if !defined(FUSEDOPTIM_CUDA)
#include "cuda/norm.h"
#include "cuda/run.h"

namespace fusedoptim::cuda {

bool built() { return false; }

struct Driver::State {};

Driver::Driver() = default;
Driver::~Driver() = default;
const char* Driver::problem(int) { return "this build has no CUDA kernels"; }
// With a problem on every device no task gets here.
bool Driver::is_capturing(int, void*) { return false; }
void Driver::prepare(const std::vector<Task>&, const std::vector<DeviceRun>&, bool, bool) {}
void Driver::prepare_zero(const std::vector<Span>&, const std::vector<DeviceRun>&) {}
void Driver::launch() {}

struct NormDriver::State {};

int64_t scratch_size(const std::vector<NormGrad>&) { return 0; }
NormDriver::NormDriver() = default;
NormDriver::~NormDriver() = default;
void NormDriver::measure(const std::vector<NormGrad>&, const DeviceRun&, const Measurement&) {}
void NormDriver::clip(const std::vector<NormGrad>&, const DeviceRun&, const double*, double) {}
void NormDriver::judge(const DeviceRun&, const double*, const Verdict&) {}

}  // namespace fusedoptim::cuda
#endif
