#include "cuda/norm.h"

#include <string>

#include "cuda/buckets.h"
#include "cuda/capacity.h"

namespace fusedoptim::cuda {
namespace {

struct Rows {
  std::vector<NormRow> rows;
  std::vector<int64_t> layouts;
  int64_t units = 0;
  int32_t filled = 0;
};

Rows rows_of(const std::vector<NormGrad>& grads) {
  Rows all;
  for (const NormGrad& grad : grads) {
    NormRow& row = all.rows.emplace_back();
    row = {grad.data, grad.count, all.units, int32_t(grad.dtype), kNoLayout, grad.is_dense};
    if (grad.layout != nullptr) {
      row.layout = int32_t(all.layouts.size());
      all.layouts.push_back(grad.layout->ndim);
      all.layouts.insert(all.layouts.end(), grad.layout->sizes, grad.layout->sizes + grad.layout->ndim);
      all.layouts.insert(all.layouts.end(), grad.layout->strides, grad.layout->strides + grad.layout->ndim);
    }
    all.units += (grad.count + kSumUnit - 1) / kSumUnit;
    all.filled += grad.count > 0 ? 1 : 0;
  }
  return all;
}

}  // namespace

struct NormDriver::State {
  Tables tables;
  Capacity capacity;

  // Both kernels that read gradients read one table.
  const Table& table_of(const Rows& all, const DeviceRun& run) {
    tables.begin_step();
    return tables.find(run.device, static_cast<cudaStream_t>(run.stream), run.capturing, bytes_of(all.rows),
                       bytes_of(all.layouts),
                       [&](std::vector<char>& out) { return write_norm_table(all.rows, all.layouts, out); });
  }

  template <class Launch>
  void launch(KernelHandle kernel, const DeviceRun& run, int chunks, Launch& launch, const char* name) {
    const int blocks = capacity.blocks(run.device, kernel, chunks);
    void* parameter = &launch;
    const cudaError_t code = cudaLaunchKernel(kernel, dim3(unsigned(blocks)), dim3(unsigned(kThreads)), &parameter, 0,
                                              static_cast<cudaStream_t>(run.stream));
    if (code == cudaSuccess) return;
    cudaGetLastError();
    throw Error(std::string("the CUDA launch of ") + name + " (" + std::to_string(blocks) + " blocks of " +
                std::to_string(kThreads) + " threads on cuda:" + std::to_string(run.device) +
                ") failed, or earlier work on the device: " + describe(code));
  }
};

int64_t scratch_size(const std::vector<NormGrad>& grads) { return 1 + int64_t(grads.size()) + rows_of(grads).units; }

NormDriver::NormDriver() = default;
NormDriver::~NormDriver() = default;

void NormDriver::measure(const std::vector<NormGrad>& grads, const DeviceRun& run, const Measurement& measurement) {
  if (!state_) state_ = std::make_unique<State>();
  const CurrentDevice current(run.device);
  const BesideCapture beside;
  const Rows all = rows_of(grads);
  const Table& table = state_->table_of(all, run);
  NormLaunch launch{};
  launch.rows = reinterpret_cast<const NormRow*>(table.memory);
  launch.chunks = reinterpret_cast<const Chunk*>(table.memory + table.shape.chunks);
  launch.layouts = reinterpret_cast<const int64_t*>(table.memory + table.shape.layouts);
  launch.tickets = reinterpret_cast<unsigned*>(table.memory + table.shape.ticket);
  launch.norm = measurement.scratch;
  launch.row_sums = launch.norm + 1;
  launch.unit_sums = launch.row_sums + grads.size();
  launch.rounded = measurement.rounded;
  launch.grad_scale = measurement.grad_scale;
  launch.verdict = measurement.verdict;
  launch.chunk_count = table.shape.chunk_count;
  launch.row_count = int32_t(grads.size());
  launch.filled_count = all.filled;
  launch.rounded_as = int32_t(measurement.rounded_as);
  launch.store = measurement.store;
  state_->launch(norm_kernel(), run, launch.chunk_count, launch, "the norm of gradients");
}

void NormDriver::clip(const std::vector<NormGrad>& grads, const DeviceRun& run, const double* norm, double max_norm) {
  if (!state_) state_ = std::make_unique<State>();
  const CurrentDevice current(run.device);
  const BesideCapture beside;
  const Table& table = state_->table_of(rows_of(grads), run);
  if (table.shape.chunk_count == 0) return;
  ClipLaunch launch{reinterpret_cast<const NormRow*>(table.memory),
                    reinterpret_cast<const Chunk*>(table.memory + table.shape.chunks),
                    reinterpret_cast<const int64_t*>(table.memory + table.shape.layouts),
                    norm,
                    max_norm,
                    table.shape.chunk_count};
  state_->launch(clip_kernel(), run, launch.chunk_count, launch, "the clipping of gradients");
}

void NormDriver::judge(const DeviceRun& run, const double* norm, const Verdict& verdict) {
  if (!state_) state_ = std::make_unique<State>();
  const CurrentDevice current(run.device);
  JudgeLaunch launch{norm, verdict};
  state_->launch(judge_kernel(), run, 1, launch, "the judgement of a norm");
}

}  // namespace fusedoptim::cuda
