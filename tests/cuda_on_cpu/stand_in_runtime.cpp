// A stand-in for libcudart, for the functions that the extension calls and those that nvcc's host objects do. Two
// devices of this machine's memory; a kernel is what nvcc made of it, as PTX turned into C++ (ptx_kernels.h). What a
// device would refuse is refused: work on a stream of another device, waiting or allocating in the middle of a capture.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "ptx_kernels.h"
#include "runtime.h"
#include "stand_in.h"

using cuda_on_cpu::Dim3;
using cuda_on_cpu::PtxKernelEntry;

namespace {

constexpr int kDevices = 2;

struct Operation {
  std::function<void()> run;
  bool reads_memory = true;  // which is gone when the test that queued it is over
};
using Graph = std::vector<Operation>;

struct Stream {
  int device;
  std::deque<Operation> queue;
  bool capturing = false;
  Graph captured;
};

struct Event {
  int pending = 0;  // recordings that have not been reached
};

struct Failure {
  int after;
  cudaError_t code;
  int times;
};

struct Runtime {
  int device = 0;
  cudaError_t last = cudaSuccess;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::map<uint64_t, Stream> streams;  // by handle; the default stream of each device under minus its number minus 1
  uint64_t next_stream = 0x1000;
  std::vector<Graph> graphs;
  std::map<const void*, std::string> kernels;  // names by host handle
  std::set<std::string> never_launched;
  std::map<void*, size_t> allocated, pinned;
  std::vector<StandInLaunch> launches;
  std::map<std::string, Failure> failures;
  bool eager = true;
  int uploads = 0, waits = 0;
  std::string fault;
};

Runtime& runtime() {
  static Runtime* runtime = new Runtime;  // static objects of the extension register kernels before main
  return *runtime;
}

cudaError_t failed(cudaError_t code) { return runtime().last = code; }

// What the test wants this call to return.
cudaError_t planned(const char* function) {
  const auto found = runtime().failures.find(function);
  if (found == runtime().failures.end() || found->second.after-- > 0) return cudaSuccess;
  const cudaError_t code = found->second.code;
  if (--found->second.times == 0) runtime().failures.erase(found);
  return failed(code);
}

#define RETURN_IF_PLANNED() \
  if (const cudaError_t code = planned(__func__)) return code

Stream& stream_of(cudaStream_t handle, int device) {
  const uint64_t key = handle == nullptr ? ~uint64_t(device) : reinterpret_cast<uint64_t>(handle);
  const auto found = runtime().streams.find(key);
  if (found != runtime().streams.end()) return found->second;
  if (handle != nullptr) {
    std::fprintf(stderr, "stand-in: unknown stream\n");
    std::abort();
  }
  return runtime().streams[key] = Stream{device, {}, false, {}};
}

// In the middle of a capture a call that could wait is an error, and breaks it, unless its thread has said otherwise.
bool refused_by_capture() {
  if (runtime().mode == cudaStreamCaptureModeRelaxed) return false;
  for (const auto& [key, stream] : runtime().streams) {
    if (stream.capturing) return true;
  }
  return false;
}

void run_queue(Stream& stream) {
  while (!stream.queue.empty()) {
    const Operation operation = std::move(stream.queue.front());
    stream.queue.pop_front();
    operation.run();
  }
}

void run_all() {
  for (auto& [key, stream] : runtime().streams) run_queue(stream);
}

cudaError_t enqueue(cudaStream_t handle, std::function<void()> run, bool reads_memory = true) {
  Stream& stream = stream_of(handle, runtime().device);
  if (stream.device != runtime().device) return failed(cudaErrorInvalidResourceHandle);
  if (runtime().eager && !stream.capturing) {
    run();
    return cudaSuccess;
  }
  Operation operation{std::move(run), reads_memory};
  stream.capturing ? stream.captured.push_back(std::move(operation)) : stream.queue.push_back(std::move(operation));
  return cudaSuccess;
}

// A launch with its parameters as they are now.
struct Launched {
  const PtxKernelEntry* kernel;
  Dim3 grid, block;
  StandInLaunch record;
  std::vector<std::vector<std::max_align_t>> params;

  void run() const {
    std::vector<const void*> pointers;
    for (const auto& param : params) pointers.push_back(param.data());
    runtime().launches.push_back(record);
    try {
      cuda_on_cpu::run_grid(grid, block, [&] { kernel->run(pointers.data()); });
    } catch (const cuda_on_cpu::Fault& fault) {
      runtime().fault = fault.what();
      failed(cudaErrorLaunchFailure);
    }
  }
};

}  // namespace

// ---- what nvcc's host objects call --------------------------------------------------------------------------------
extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  runtime().kernels[host] = name;
  runtime().never_launched.insert(name);
}

cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaErrorInvalidValue; }
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaErrorInvalidValue; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) { return cudaErrorInvalidValue; }

// ---- devices and errors -------------------------------------------------------------------------------------------
cudaError_t cudaGetDeviceCount(int* count) {
  RETURN_IF_PLANNED();
  *count = kDevices;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  RETURN_IF_PLANNED();
  *device = runtime().device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  RETURN_IF_PLANNED();
  if (device < 0 || device >= kDevices) return failed(cudaErrorInvalidDevice);
  runtime().device = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  RETURN_IF_PLANNED();
  if (attribute != cudaDevAttrMultiProcessorCount) return failed(cudaErrorInvalidValue);
  *value = 1;  // so that a few chunks are more than there are blocks
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  RETURN_IF_PLANNED();
  *blocks = 1;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  RETURN_IF_PLANNED();
  std::memset(attributes, 0, sizeof(*attributes));
  return runtime().kernels.count(kernel) ? cudaSuccess : failed(cudaErrorInvalidDeviceFunction);
}

cudaError_t cudaGetLastError() {
  const cudaError_t last = runtime().last;
  runtime().last = cudaSuccess;
  return last;
}

const char* cudaGetErrorName(cudaError_t code) {
  switch (code) {
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorNoKernelImageForDevice:
      return "cudaErrorNoKernelImageForDevice";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    default:
      return "another error";
  }
}

const char* cudaGetErrorString(cudaError_t code) { return code == cudaSuccess ? "no error" : "as the stand-in says"; }

// ---- memory -------------------------------------------------------------------------------------------------------
static cudaError_t allocate(std::map<void*, size_t>& pieces, void** out, size_t bytes) {
  if (refused_by_capture()) return failed(cudaErrorStreamCaptureUnsupported);
  *out = std::malloc(bytes);
  std::memset(*out, 0xab, bytes);
  pieces[*out] = bytes;
  return cudaSuccess;
}

static cudaError_t release(std::map<void*, size_t>& pieces, void* memory) {
  const auto found = pieces.find(memory);
  if (found == pieces.end()) return failed(cudaErrorInvalidValue);
  std::memset(memory, 0xcd, found->second);  // and nobody gets it again, so that who still reads it is found out
  pieces.erase(found);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** out, size_t bytes) {
  RETURN_IF_PLANNED();
  return allocate(runtime().allocated, out, bytes);
}

cudaError_t cudaFree(void* memory) {
  RETURN_IF_PLANNED();
  if (refused_by_capture()) return failed(cudaErrorStreamCaptureUnsupported);
  ++runtime().waits;
  run_all();  // it waits for the device
  return release(runtime().allocated, memory);
}

cudaError_t cudaHostAlloc(void** out, size_t bytes, unsigned) {
  RETURN_IF_PLANNED();
  return allocate(runtime().pinned, out, bytes);
}

cudaError_t cudaFreeHost(void* memory) {
  RETURN_IF_PLANNED();
  return release(runtime().pinned, memory);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  RETURN_IF_PLANNED();
  if (kind != cudaMemcpyHostToDevice) return failed(cudaErrorInvalidValue);
  ++runtime().uploads;
  return enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}

// ---- streams, events, capture -------------------------------------------------------------------------------------
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* out, unsigned) {
  RETURN_IF_PLANNED();
  *out = reinterpret_cast<cudaStream_t>(stand_in_new_stream(runtime().device));
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  RETURN_IF_PLANNED();
  run_queue(stream_of(stream, runtime().device));
  runtime().streams.erase(reinterpret_cast<uint64_t>(stream));
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  RETURN_IF_PLANNED();
  Stream& stream = stream_of(handle, runtime().device);
  if (refused_by_capture() || stream.capturing) return failed(cudaErrorStreamCaptureUnsupported);
  ++runtime().waits;
  run_queue(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  RETURN_IF_PLANNED();
  const bool capturing = stream_of(handle, runtime().device).capturing;
  *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  RETURN_IF_PLANNED();
  std::swap(*mode, runtime().mode);
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned) {
  RETURN_IF_PLANNED();
  *out = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<Event*>(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
  RETURN_IF_PLANNED();
  Event* event = reinterpret_cast<Event*>(handle);
  ++event->pending;
  return enqueue(stream, [event] { --event->pending; }, false);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  RETURN_IF_PLANNED();
  if (refused_by_capture()) return failed(cudaErrorStreamCaptureUnsupported);
  return reinterpret_cast<Event*>(event)->pending == 0 ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t) {
  RETURN_IF_PLANNED();
  ++runtime().waits;
  run_all();
  return cudaSuccess;
}

// ---- kernels ------------------------------------------------------------------------------------------------------
cudaError_t cudaLaunchKernel(const void* handle, dim3 grid, dim3 block, void** args, size_t shared,
                             cudaStream_t stream) {
  RETURN_IF_PLANNED();
  const auto found = runtime().kernels.find(handle);
  if (found == runtime().kernels.end()) return failed(cudaErrorInvalidDeviceFunction);
  const char* name = found->second.c_str();
  const PtxKernelEntry* kernel = cuda_on_cpu::find_ptx_kernel(name);
  if (kernel == nullptr) return failed(cudaErrorNoKernelImageForDevice);
  if (grid.x == 0 || block.x == 0 || shared != 0 || (kernel->max_threads != 0 && block.x > kernel->max_threads)) {
    return failed(cudaErrorInvalidConfiguration);
  }
  Launched launched{kernel, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, {}, {}};
  launched.record = {name, runtime().device, reinterpret_cast<uint64_t>(stream), grid.x, block.x};
  for (size_t i = 0; i < kernel->param_bytes.size(); ++i) {
    auto& param = launched.params.emplace_back(kernel->param_bytes[i] / sizeof(std::max_align_t) + 1);
    std::memcpy(param.data(), args[i], kernel->param_bytes[i]);
  }
  runtime().never_launched.erase(name);
  return enqueue(stream, [launched] { launched.run(); });
}

// ---- for tests ----------------------------------------------------------------------------------------------------
void stand_in_reset() {
  Runtime& now = runtime();
  for (auto& [key, stream] : now.streams) {
    for (const Operation& operation : stream.queue) {
      if (!operation.reads_memory) operation.run();
    }
    stream = Stream{stream.device, {}, false, {}};
  }
  now.launches.clear();
  now.failures.clear();
  now.uploads = now.waits = 0;
  now.fault.clear();
  now.last = cudaSuccess;
  now.device = 0;
}

void stand_in_finish() { run_all(); }

void stand_in_set_eager(int eager) {
  run_all();
  runtime().eager = eager != 0;
}

void stand_in_set_order(uint64_t seed) { cuda_on_cpu::set_order(seed); }

uint64_t stand_in_new_stream(int device) {
  const uint64_t handle = runtime().next_stream++;
  runtime().streams[handle] = Stream{device, {}, false, {}};
  return handle;
}

int stand_in_launch_count() { return int(runtime().launches.size()); }
StandInLaunch stand_in_launch(int number) { return runtime().launches.at(size_t(number)); }

int stand_in_count(const char* what) {
  const std::map<std::string, int> counts = {{"uploads", runtime().uploads},
                                             {"waits", runtime().waits},
                                             {"pinned", int(runtime().pinned.size())},
                                             {"allocated", int(runtime().allocated.size())}};
  return counts.at(what);
}

const char* stand_in_fault() { return runtime().fault.c_str(); }

void stand_in_fail(const char* function, int after, int code, int times) {
  runtime().failures[function] = {after, cudaError_t(code), times};
}

void stand_in_begin_capture(uint64_t stream) { runtime().streams.at(stream).capturing = true; }

int stand_in_end_capture(uint64_t handle) {
  Stream& stream = runtime().streams.at(handle);
  stream.capturing = false;
  runtime().graphs.push_back(std::move(stream.captured));
  stream.captured = {};
  return int(runtime().graphs.size()) - 1;
}

void stand_in_replay(int graph) {
  for (const Operation& operation : runtime().graphs.at(size_t(graph))) operation.run();
}

int stand_in_graph_size(int graph) { return int(runtime().graphs.at(size_t(graph)).size()); }

const char* stand_in_kernel_never_launched(int number) {
  auto name = runtime().never_launched.begin();
  std::advance(name, std::min(size_t(number), runtime().never_launched.size()));
  return name == runtime().never_launched.end() ? nullptr : name->c_str();
}

}  // extern "C"
