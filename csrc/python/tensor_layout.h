// Torch's tensor objects, read where they lie. DLPack (tensor_view.h) shows any tensor and torch's getter a gradient,
// at the cost of a call; a step asks for thousands, so of plain strided CPU tensors the same few words are read from
// torch's objects themselves, in a few loads. No header of torch tells where these words lie: the places are probed
// once, with tensors whose every word torch also tells through Python. Where that fails, everything goes through
// DLPack. Nothing is written but version counters.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "core/dtype.h"
#include "rules/rule.h"

namespace fusedoptim::python {

// A torch tensor's C++ object, or another that it points to.
class TensorImplRef {
 public:
  explicit TensorImplRef(const char* at = nullptr) : at_(at) {}
  template <class T>
  T read(int offset) const {
    T value;
    std::memcpy(&value, at_ + offset, sizeof(T));
    return value;
  }
  TensorImplRef follow(int offset) const { return TensorImplRef(read<const char*>(offset)); }
  const char* at() const { return at_; }
  explicit operator bool() const { return at_ != nullptr; }
  bool operator==(TensorImplRef o) const { return at_ == o.at_; }

 private:
  const char* at_;
};

class TensorLayout {
 public:
  static const TensorLayout* get() { return known_; }  // null unless it is known
  // Probes it, in a thread where no mode of torch is active, in which its tensors would be others. Throws an error that
  // names what is not as expected.
  static void probe();

  static constexpr int kMaxDims = 5;  // of more dimensions torch keeps the sizes elsewhere

  TensorImplRef impl(PyObject* plain) const {
    return TensorImplRef(reinterpret_cast<const char*>(plain)).follow(impl_);
  }

  // Strided CPU memory of few dimensions and nothing more: no subclass, conjugation, negation, wrapper, inference, meta
  // or sparse tensor.
  bool is_plain_strided(TensorImplRef tensor) const {
    return tensor.read<uint64_t>(keys()) == plain_keys_ && ndim(tensor) <= uint64_t(kMaxDims);
  }
  // A view that is lazily negated, whose memory holds the opposite sign; of a tensor on any device.
  bool is_negated(TensorImplRef tensor) const { return (tensor.read<uint64_t>(keys()) & negative_key_) != 0; }
  // The Python object of a tensor, which only those have that Python code has seen; borrowed, or null. In older torch
  // the lowest bit tells which of the two keeps the other alive.
  PyObject* object(TensorImplRef tensor) const {
    return reinterpret_cast<PyObject*>(tensor.read<uintptr_t>(object_) & ~uintptr_t(1));
  }

  // Null if there is none.
  TensorImplRef grad(TensorImplRef tensor) const {
    const TensorImplRef meta = tensor.follow(autograd_);
    if (!meta) return meta;
    const TensorImplRef grad = meta.follow(grad_);
    return grad == undefined_ ? TensorImplRef() : grad;
  }
  // False only if autograd does not know the tensor at all.
  bool may_require_grad(TensorImplRef tensor) const { return bool(tensor.follow(autograd_)); }

  uint64_t ndim(TensorImplRef tensor) const { return tensor.read<uint64_t>(geometry()); }
  const int64_t* sizes(TensorImplRef tensor) const {
    return reinterpret_cast<const int64_t*>(tensor.at() + geometry() + int(sizeof(uint64_t)));
  }
  const int64_t* strides(TensorImplRef tensor) const { return sizes(tensor) + kMaxDims; }
  int64_t count(TensorImplRef tensor) const { return tensor.read<int64_t>(offset() + 8); }
  bool same_geometry(TensorImplRef a, TensorImplRef b) const {
    const uint64_t dims = ndim(a);
    if (ndim(b) != dims) return false;
    for (uint64_t d = 0; d < dims; ++d) {
      if (sizes(a)[d] != sizes(b)[d] || (strides(a)[d] != strides(b)[d] && sizes(a)[d] > 1)) return false;
    }
    return true;
  }

  // Contiguous in the order of its dimensions.
  FUSEDOPTIM_INLINE bool is_row_major(TensorImplRef tensor) const {
    int64_t below = 1;
    for (int d = int(ndim(tensor)) - 1; d >= 0; --d) {
      if (sizes(tensor)[d] != 1 && strides(tensor)[d] != below) return false;
      below *= sizes(tensor)[d];
    }
    return true;
  }

  bool same_dtype(TensorImplRef a, TensorImplRef b) const { return type(a) == type(b); }
  // False for any type but those that the kernels know.
  bool dtype(TensorImplRef tensor, DType& out) const {
    const uint16_t known = type(tensor);
    for (int i = 0; i < kStoredDTypes; ++i) {
      if (types_[i] == known) return out = DType(i), true;
    }
    return false;
  }

  // The first element; null where the memory is not plainly there (freed, none, copied on write, …).
  FUSEDOPTIM_INLINE char* data(TensorImplRef tensor, int64_t item_size) const {
    const TensorImplRef storage = tensor.follow(storage_);
    if (!storage) return nullptr;
    char* data = storage.read<char*>(data_);
    if (data == nullptr || (storage.read<uint64_t>(flags()) & kFlagMask) != 0) return nullptr;
    return data + tensor.read<int64_t>(offset()) * item_size;
  }

  // Of any strided tensor: where its memory is, in words that differ where that does, and its type; null if not plain.
  struct Place {
    const char* data;
    uint64_t type;
  };
  Place place(TensorImplRef tensor) const {
    if (ndim(tensor) > uint64_t(kMaxDims)) return {nullptr, 0};
    return {data(tensor, 8), type(tensor)};
  }

  void prefetch(TensorImplRef tensor) const {
    __builtin_prefetch(tensor.at() + storage_);
    __builtin_prefetch(tensor.at() + storage_ + 64);
    __builtin_prefetch(tensor.at() + keys());
  }

  // How often torch has counted a write; -1 of an inference tensor, which has no count.
  int64_t version(TensorImplRef tensor) const {
    const TensorImplRef counter = tensor.follow(version_);
    return counter ? int64_t(counter.read<uint32_t>(kVersion)) : -1;
  }

  // As torch.autograd.graph.increment_version, for a plain strided tensor.
  void bump_version(TensorImplRef tensor) const {
    char* counter = tensor.read<char*>(version_);
    if (counter != nullptr) __atomic_fetch_add(reinterpret_cast<uint32_t*>(counter + kVersion), 1u, __ATOMIC_RELAXED);
  }

 private:
  TensorLayout();
  void probe_places(pybind11::handle torch);
  void probe_types();
  void check(pybind11::handle tensor) const;  // against everything that torch tells of it
  void check_version(pybind11::handle tensor) const;

  uint16_t type(TensorImplRef tensor) const { return tensor.read<uint16_t>(offset() + 16); }

  // Behind the slot of the Python object lie the number of dimensions, five sizes, five strides, the offset, the number
  // of elements, the type, the device and flags, and the dispatch keys.
  int geometry() const { return object_ + 8; }
  int offset() const { return geometry() + 88; }
  int keys() const { return offset() + 24; }
  // Of a storage: where its memory is, who frees it and how, its device, its size; then flags.
  int flags() const { return data_ + 40; }
  // Sizes on the heap; received from a CUDA process; copied on write; and throwing on access. Not: resizable.
  static constexpr uint64_t kFlagMask = 0x00ffffffffff00ffu;
  static constexpr int kVersion = 16;

  static const TensorLayout* known_;

  int impl_ = 0, storage_ = 0, autograd_ = 0, version_ = 0, object_ = 0, grad_ = 0, data_ = 0;
  uint64_t plain_keys_ = 0, negative_key_ = 0;
  uint16_t types_[kStoredDTypes] = {};
  TensorImplRef undefined_;  // what stands for no gradient
};

}  // namespace fusedoptim::python
