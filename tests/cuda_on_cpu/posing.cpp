// Lets CPU tensors pose as CUDA tensors, at the one place where the extension learns what a tensor is: the function
// table that torch publishes for the DLPack exchange.
#include <map>

#include "python/dlpack.h"
#include "stand_in.h"

namespace dlpack = fusedoptim::dlpack;

namespace {

dlpack::ExchangeApi* torchs;
dlpack::ExchangeApi posing;
std::map<const void*, int> places;
std::map<int, uint64_t> streams;
int default_device = 0;

int view_from_object(void* object, dlpack::Tensor* out) {
  const int failed = torchs->view_from_object(object, out);
  if (failed != 0 || out->device.type != dlpack::kCpu) return failed;
  const int device = posing_device(object, out->ndim);
  if (device >= 0) out->device = {dlpack::kCuda, device};
  return 0;
}

int current_work_stream(int32_t, int32_t device, void** out) {
  *out = reinterpret_cast<void*>(streams[device]);
  return 0;
}

}  // namespace

void* posing_table(void* torchs_table) {
  torchs = static_cast<dlpack::ExchangeApi*>(torchs_table);
  posing = *torchs;
  posing.view_from_object = view_from_object;
  posing.current_work_stream = current_work_stream;
  return &posing;
}

void posing_place(void* object, int device) { places[object] = device; }

void posing_forget(void* object) { places.erase(object); }

int posing_device(void* object, int dims) {
  const auto found = places.find(object);
  return found != places.end() ? found->second : dims > 0 ? default_device : -1;
}

void posing_set_default(int device) { default_device = device; }

void posing_set_stream(int device, uint64_t stream) { streams[device] = stream; }
