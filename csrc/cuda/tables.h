// Tables that kernels read, kept on the device between steps.
#pragma once

#include <functional>
#include <vector>

#include "cuda/launch.h"
#include "cuda/runtime.h"

namespace fusedoptim::cuda {

struct Bytes {
  const void* data;
  size_t size;
};

template <class T>
Bytes bytes_of(const std::vector<T>& entries) {
  return {entries.data(), entries.size() * sizeof(T)};
}

// Where the parts of a table begin, in bytes, and how many entries they have. Rows come first.
struct Shape {
  size_t chunks = 0, counts = 0, layouts = 0, ticket = 0;
  int32_t chunk_count = 0, counts_count = 0;
};

struct Table {
  int device;
  cudaStream_t stream;  // on which it was uploaded; kernels on no other stream read it
  std::vector<char> key;
  char* memory = nullptr;
  size_t capacity = 0;
  Shape shape;
  bool frozen = false;  // a CUDA graph reads it, whenever that is replayed: never written again
  uint64_t last_used = 0;
};

class Tables {
 public:
  Tables() = default;
  ~Tables();
  Tables(const Tables&) = delete;
  Tables& operator=(const Tables&) = delete;

  void begin_step() { ++step_; }

  // The table of this key (two parts) for kernels on the stream of `device`, the current one; uploaded only if it is
  // not there. `write` appends its contents.
  using Write = std::function<Shape(std::vector<char>&)>;
  const Table& find(int device, cudaStream_t stream, bool capturing, Bytes key, Bytes key_rest, const Write& write);

 private:
  // Pinned memory that an upload reads from until its event has come.
  struct Staging {
    int device;
    char* memory;
    size_t capacity;
    cudaEvent_t done;
  };

  bool is_old(const Table& table) const;
  Table& take(int device, cudaStream_t stream, bool capturing);
  void drop_oldest();
  void upload(Table& table, const std::vector<char>& contents);
  void upload_beside_capture(Table& table, const std::vector<char>& contents);
  Staging& free_staging(int device, size_t bytes);

  uint64_t step_ = 0;
  std::vector<Table> tables_;
  std::vector<Staging> stagings_;
  std::vector<char> contents_;
};

}  // namespace fusedoptim::cuda
