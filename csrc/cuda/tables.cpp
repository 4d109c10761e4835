#include "cuda/tables.h"

#include <algorithm>
#include <cstring>

namespace fusedoptim::cuda {
namespace {

constexpr uint64_t kKeptSteps = 3;  // so that addresses which come again within them need no upload
constexpr size_t kMaxTables = 256;  // beyond which old ones are given back

bool same(const std::vector<char>& key, Bytes first, Bytes rest) {
  return key.size() == first.size + rest.size &&
         (first.size == 0 || std::memcmp(key.data(), first.data, first.size) == 0) &&
         (rest.size == 0 || std::memcmp(key.data() + first.size, rest.data, rest.size) == 0);
}

void append(std::vector<char>& to, Bytes bytes) {
  const char* from = static_cast<const char*>(bytes.data);
  to.insert(to.end(), from, from + bytes.size);
}

size_t grown(size_t bytes) {  // so that a table which grows a little need not move
  size_t capacity = 4096;
  while (capacity < bytes) capacity *= 2;
  return capacity;
}

void release(Table& table) {
  if (table.memory != nullptr) cudaFree(table.memory);
  table.memory = nullptr;
}

// Does work that must not throw, though it may fail: at the end of the process the driver has gone.
template <class Work>
void on_device(int device, Work work) {
  try {
    const CurrentDevice current(device);
    const BesideCapture beside;
    work();
  } catch (const Error&) {
  }
  cudaGetLastError();
}

}  // namespace

// Frozen tables stay: a graph may be replayed when the optimizer is gone.
Tables::~Tables() {
  for (Table& table : tables_) {
    if (!table.frozen) on_device(table.device, [&] { release(table); });
  }
  for (Staging& staging : stagings_) {
    on_device(staging.device, [&] {
      cudaEventSynchronize(staging.done);
      cudaEventDestroy(staging.done);
      cudaFreeHost(staging.memory);
    });
  }
}

const Table& Tables::find(int device, cudaStream_t stream, bool capturing, Bytes key, Bytes key_rest,
                          const Write& write) {
  for (Table& table : tables_) {
    if (table.device == device && table.stream == stream && same(table.key, key, key_rest)) {
      table.last_used = step_;
      table.frozen = table.frozen || capturing;
      return table;
    }
  }
  contents_.clear();
  const Shape shape = write(contents_);
  Table& table = take(device, stream, capturing);
  table.key.clear();  // while the upload may fail, it holds nothing that anyone looks for
  table.last_used = step_;
  capturing ? upload_beside_capture(table, contents_) : upload(table, contents_);
  table.frozen = capturing;
  table.shape = shape;
  append(table.key, key);
  append(table.key, key_rest);
  return table;
}

bool Tables::is_old(const Table& table) const { return !table.frozen && table.last_used + kKeptSteps < step_; }

// A table to be overwritten, or a new one. What the last few steps used is kept, for addresses may come again.
Table& Tables::take(int device, cudaStream_t stream, bool capturing) {
  Table* oldest = nullptr;
  for (Table& table : tables_) {
    if (capturing || table.device != device || table.stream != stream || !is_old(table)) continue;
    if (oldest == nullptr || table.last_used < oldest->last_used) oldest = &table;
  }
  if (oldest != nullptr) return *oldest;
  if (!capturing && tables_.size() >= kMaxTables) drop_oldest();
  tables_.push_back({device, stream, {}, nullptr, 0, {}, false, step_});
  return tables_.back();
}

// Streams that are used no more leave tables that no other may overwrite.
void Tables::drop_oldest() {
  const auto last_used = [](const Table& table) { return table.frozen ? ~uint64_t(0) : table.last_used; };
  const auto oldest = std::min_element(tables_.begin(), tables_.end(),
                                       [&](const Table& a, const Table& b) { return last_used(a) < last_used(b); });
  if (!is_old(*oldest)) return;
  on_device(oldest->device, [&] { release(*oldest); });
  tables_.erase(oldest);
}

void Tables::upload(Table& table, const std::vector<char>& contents) {
  const size_t size = contents.size();
  if (table.capacity < size) {
    release(table);
    table.capacity = 0;
    void* memory = nullptr;
    check(cudaMalloc(&memory, grown(size)), "allocating the table of a step");
    table.memory = static_cast<char*>(memory);
    table.capacity = grown(size);
  }
  Staging& staging = free_staging(table.device, size);
  std::memcpy(staging.memory, contents.data(), size);
  check(cudaMemcpyAsync(table.memory, staging.memory, size, cudaMemcpyHostToDevice, table.stream),
        "uploading the table of a step");
  check(cudaEventRecord(staging.done, table.stream), "recording the upload of a table");
}

// While a graph is being captured the contents must be there before the graph is, and stay: on a stream of its own, and
// waited for, once in the life of a graph.
void Tables::upload_beside_capture(Table& table, const std::vector<char>& contents) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, contents.size()), "allocating a table for a graph");
  table.memory = static_cast<char*>(memory);
  table.capacity = contents.size();
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream beside a capture");
  cudaError_t code = cudaMemcpyAsync(table.memory, contents.data(), contents.size(), cudaMemcpyHostToDevice, stream);
  if (code == cudaSuccess) code = cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
  check(code, "uploading a table for a graph");
}

// Pinned memory that no upload reads any more: another piece is cheaper than waiting.
Tables::Staging& Tables::free_staging(int device, size_t bytes) {
  for (Staging& staging : stagings_) {
    if (staging.device != device || staging.capacity < bytes) continue;
    const cudaError_t code = cudaEventQuery(staging.done);
    if (code == cudaSuccess) return staging;
    cudaGetLastError();
    if (code != cudaErrorNotReady) check(code, "asking whether a table is uploaded");
  }
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, grown(bytes), cudaHostAllocDefault), "allocating pinned memory");
  cudaEvent_t done;
  const cudaError_t code = cudaEventCreateWithFlags(&done, cudaEventDisableTiming);
  if (code != cudaSuccess) cudaFreeHost(memory);
  check(code, "creating an event");
  stagings_.push_back({device, static_cast<char*>(memory), grown(bytes), done});
  return stagings_.back();
}

}  // namespace fusedoptim::cuda
