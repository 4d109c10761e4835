#include "cuda/run.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>

#include "cuda/buckets.h"
#include "cuda/capacity.h"
#include "rules/all.h"

namespace fusedoptim::cuda {
namespace {

template <template <class> class... Rules>
const char* rule_name(int rule, RuleList<Rules...>) {
  const char* const names[] = {Rules<float>::kName...};
  return names[rule];
}

struct Launch {
  int device;
  cudaStream_t stream;
  KernelHandle kernel;
  int blocks;
  std::string name;  // for errors
  bool is_step;
  StepLaunch step;
  ZeroLaunch zero;
};

// Errors that stay as long as the process does.
bool is_permanent(cudaError_t code) {
  switch (code) {
    case cudaSuccess:
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      return true;
    default:
      return false;
  }
}

}  // namespace

struct Driver::State {
  Tables tables, zero_tables;
  std::vector<Launch> launches;
  std::map<int, std::string> problems;  // by device, empty where there is none
  Capacity capacity;

  void prepare(const Bucket& bucket, bool zero_grad) {
    const Task& task = *bucket.first;
    const cudaStream_t stream = static_cast<cudaStream_t>(bucket.run->stream);
    const Table& table =
        tables.find(task.device, stream, bucket.run->capturing, bytes_of(bucket.rows), bytes_of(bucket.layouts),
                    [&](std::vector<char>& out) { return write_step_table(bucket.rows, bucket.layouts, out); });
    const Shape& shape = table.shape;
    if (shape.chunk_count == 0 && shape.counts_count == 0) return;

    Launch& launch = launches.emplace_back();
    launch.device = task.device;
    launch.stream = stream;
    launch.kernel = step_kernel(task.rule, task.variant, !task.mixed && task.dtype == DType::f64);
    launch.blocks = capacity.blocks(task.device, launch.kernel, shape.chunk_count);
    launch.name = std::string(rule_name(task.rule, AllRules())) + " on " + std::to_string(bucket.rows.size()) + " " +
                  torch_name(task.dtype) + " parameters";
    launch.is_step = true;
    StepLaunch& step = launch.step;
    step = {};
    step.rows = reinterpret_cast<const Row*>(table.memory);
    step.chunks = reinterpret_cast<const Chunk*>(table.memory + shape.chunks);
    step.counts = reinterpret_cast<const StepNumbers*>(table.memory + shape.counts);
    step.layouts = reinterpret_cast<const int64_t*>(table.memory + shape.layouts);
    step.ticket = reinterpret_cast<unsigned*>(table.memory + shape.ticket);
    step.found_inf = bucket.run->found_inf;
    step.grad_scale = bucket.run->grad_scale;
    step.chunk_count = shape.chunk_count;
    step.counts_count = shape.counts_count;
    step.factor = task.factor;
    step.norm = task.norm;
    step.max_norm = task.max_norm;
    for (int k = 0; k < task.operand_count; ++k) {
      step.formats[k] = format_of(task, k);
      step.sizes[k] = int32_t(size_of(task.dtype_of(k)));
    }
    step.companion = task.companion;
    step.averages = task.averages;
    step.average_is_new = task.average_is_new;
    step.average_weight = task.average_weight;
    step.zero_grad = zero_grad;
    step.step = task.next_step;
    step.computes_constants = task.device_options != nullptr;
    if (step.computes_constants) {
      const DeviceOptions& options = *task.device_options;
      step.number_count = options.number_count;
      std::copy(options.numbers, options.numbers + options.number_count, step.numbers);
      std::memcpy(step.rule, options.options, kMaxRuleBytes);
    } else {
      std::memcpy(step.rule, task.constants, kMaxRuleBytes);
    }
  }
};

bool built() { return true; }

Driver::Driver() = default;
Driver::~Driver() = default;

const char* Driver::problem(int device) {
  if (!state_) state_ = std::make_unique<State>();
  const auto found = state_->problems.find(device);
  if (found != state_->problems.end()) return found->second.empty() ? nullptr : found->second.c_str();

  int before;
  cudaError_t code = cudaGetDevice(&before);
  if (code == cudaSuccess) {
    const CurrentDevice current(device);
    const BesideCapture beside;  // the first call for a device loads the kernels
    cudaFuncAttributes attributes;
    code = cudaFuncGetAttributes(&attributes, zero_kernel());
  }
  if (!is_permanent(code)) check(code, "looking for the kernels");
  cudaGetLastError();
  std::string& text = state_->problems[device];
  if (code != cudaSuccess) text = "the kernels of this build do not run on its device: " + describe(code);
  return text.empty() ? nullptr : text.c_str();
}

bool Driver::is_capturing(int device, void* stream) {
  const CurrentDevice current(device);
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "asking whether a graph is captured");
  return status != cudaStreamCaptureStatusNone;
}

void Driver::prepare(const std::vector<Task>& tasks, const std::vector<DeviceRun>& runs, bool zero_grad,
                     bool in_order) {
  state_->launches.clear();
  state_->tables.begin_step();
  std::deque<Bucket> buckets;
  for (const Task& task : tasks) {
    const auto bucket =
        in_order ? buckets.end()
                 : std::find_if(buckets.begin(), buckets.end(), [&](const Bucket& b) { return b.takes(task); });
    if (bucket != buckets.end()) {
      bucket->add(task);
      continue;
    }
    const auto run =
        std::find_if(runs.begin(), runs.end(), [&](const DeviceRun& r) { return r.device == task.device; });
    buckets.push_back({&task, &*run, {}, {}});
    buckets.back().rows.reserve(in_order ? 1 : tasks.size());
    buckets.back().add(task);
  }
  for (const Bucket& bucket : buckets) {
    const CurrentDevice current(bucket.first->device);
    const BesideCapture beside;
    state_->prepare(bucket, zero_grad);
  }
}

void Driver::prepare_zero(const std::vector<Span>& spans, const std::vector<DeviceRun>& runs) {
  state_->launches.clear();
  state_->zero_tables.begin_step();
  for (const DeviceRun& run : runs) {
    std::vector<ZeroSpan> here;
    for (const Span& span : spans) {
      if (span.device == run.device && span.bytes > 0) here.push_back({span.data, span.bytes});
    }
    if (here.empty()) continue;
    const CurrentDevice current(run.device);
    const BesideCapture beside;
    const cudaStream_t stream = static_cast<cudaStream_t>(run.stream);
    const Table& table = state_->zero_tables.find(run.device, stream, run.capturing, bytes_of(here), {nullptr, 0},
                                                  [&](std::vector<char>& out) { return write_zero_table(here, out); });
    Launch& launch = state_->launches.emplace_back();
    launch.device = run.device;
    launch.stream = stream;
    launch.kernel = zero_kernel();
    launch.blocks = state_->capacity.blocks(run.device, launch.kernel, table.shape.chunk_count);
    launch.name = "zeroing of " + std::to_string(here.size()) + " gradients";
    launch.is_step = false;
    launch.zero = {reinterpret_cast<const ZeroSpan*>(table.memory),
                   reinterpret_cast<const Chunk*>(table.memory + table.shape.chunks), table.shape.chunk_count};
  }
}

void Driver::launch() {
  for (size_t i = 0; i < state_->launches.size(); ++i) {
    Launch& launch = state_->launches[i];
    const CurrentDevice current(launch.device);
    void* parameter = launch.is_step ? static_cast<void*>(&launch.step) : &launch.zero;
    const cudaError_t code = cudaLaunchKernel(launch.kernel, dim3(unsigned(launch.blocks)), dim3(unsigned(kThreads)),
                                              &parameter, 0, launch.stream);
    if (code == cudaSuccess) continue;
    cudaGetLastError();
    throw Error("the CUDA launch of " + launch.name + " (" + std::to_string(launch.blocks) + " blocks of " +
                std::to_string(kThreads) + " threads on cuda:" + std::to_string(launch.device) +
                ") failed, or earlier work on the device: " + describe(code) +
                (i > 0 ? "; " + std::to_string(i) + " launches of this step were made before it" : ""));
  }
}

}  // namespace fusedoptim::cuda
