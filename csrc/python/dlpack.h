// The part of the DLPack 1.x C exchange ABI that crosses the boundary to torch, in our own words. The layout of these
// structs is fixed by the DLPack specification (github.com/dmlc/dlpack); torch publishes the function table on its
// tensor type as `__dlpack_c_exchange_api__` since 2.10. Nothing else of torch is needed to read a tensor.
#pragma once

#include <cstdint>

namespace fusedoptim::dlpack {

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3 };
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4 };
constexpr uint32_t kMajorVersion = 1;

struct Device {
  int32_t type;
  int32_t index;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* sizes;    // borrowed from the framework's tensor
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct Version {
  uint32_t major, minor;
};

struct ExchangeApi {
  Version version;
  ExchangeApi* older;
  void* allocate;
  void* owned_from_object;
  void* object_from_owned;
  // Fills `out` with a view that lives as long as `object` is not changed; -1 with a Python error set on failure.
  int (*view_from_object)(void* object, Tensor* out);
  int (*current_work_stream)(int32_t device_type, int32_t device_index, void** out);
};

}  // namespace fusedoptim::dlpack
