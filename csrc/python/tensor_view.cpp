#include "python/tensor_view.h"

#include <algorithm>
#include <cstdint>

#include "python/tensor_layout.h"
#include "python/torch.h"

namespace fusedoptim::python {
namespace {

constexpr uint32_t word_of(dlpack::DataType type) {
  return uint32_t(type.code) | uint32_t(type.bits) << 8 | uint32_t(type.lanes) << 16;
}

std::optional<DType> dtype_of(dlpack::DataType type) {
  switch (word_of(type)) {
    case word_of({dlpack::kFloat, 32, 1}):
      return DType::f32;
    case word_of({dlpack::kFloat, 64, 1}):
      return DType::f64;
    case word_of({dlpack::kBFloat, 16, 1}):
      return DType::bf16;
    case word_of({dlpack::kFloat, 16, 1}):
      return DType::f16;
    case word_of({dlpack::kUInt, 8, 1}):
      return DType::u8;
    case word_of({dlpack::kInt, 16, 1}):
      return DType::i16;
    default:
      return std::nullopt;
  }
}

// Zeros that autograd never wrote, and storages that were freed, have no memory: their data is null, and that of a view
// of them lies as far from null as the view's offset. No other memory lies so low, as a rule; then torch is asked.
bool is_suspicious(const char* data, dlpack::Device device) {
  return reinterpret_cast<uintptr_t>(data) < uintptr_t(1) << (device.type == dlpack::kCpu ? 40 : 33);
}

uint64_t geometry_of(uint64_t type, int ndim, const int64_t* sizes, const int64_t* strides) {
  uint64_t hash = type;
  const auto mix = [&hash](int64_t number) { hash = (hash ^ uint64_t(number)) * 0x9e3779b97f4a7c15u; };
  for (int d = 0; d < ndim; ++d) mix(sizes[d]), mix(strides[d]);
  return hash;
}

}  // namespace

bool are_disjoint(int ndim, const int64_t* sizes, const int64_t* strides) {
  int order[kMaxDims];
  int dims = 0;
  for (int d = 0; d < ndim; ++d) {
    if (sizes[d] > 1) order[dims++] = d;
  }
  std::sort(order, order + dims, [strides](int a, int b) { return strides[a] < strides[b]; });
  int64_t reach = 0;  // offset of the last element that the dimensions so far can reach
  for (int i = 0; i < dims; ++i) {
    if (strides[order[i]] <= reach) return false;
    reach += (sizes[order[i]] - 1) * strides[order[i]];
  }
  return true;
}

bool TensorView::read(PyObject* plain) {
  return (TensorLayout::get() != nullptr && read_layout(plain)) || read_dlpack(plain);
}

bool TensorView::read_layout(PyObject* plain) {
  const TensorLayout* const layout = TensorLayout::get();
  const TensorImplRef impl = layout->impl(plain);
  DType known;
  if (!layout->is_plain_strided(impl) || !layout->dtype(impl, known)) return false;
  data = layout->data(impl, int64_t(size_of(known)));
  if (data == nullptr && layout->count(impl) > 0) return false;
  ndim = int(layout->ndim(impl));
  sizes = layout->sizes(impl);
  strides = layout->strides(impl);
  device = {dlpack::kCpu, 0};
  dtype = known;
  item_size = int64_t(size_of(known));
  tensor = plain;
  measure();
  return true;
}

bool TensorView::read_dlpack(PyObject* plain) {
  dlpack::Tensor t;
  if (!Torch::get().view(plain, t) || t.ndim > kMaxDims) return false;
  data = static_cast<char*>(t.data) + t.byte_offset;
  ndim = t.ndim;
  sizes = t.sizes;
  strides = t.strides;
  device = {t.device.type, t.device.type == dlpack::kCpu ? 0 : t.device.index};
  dtype = dtype_of(t.dtype);
  item_size = t.dtype.bits / 8;
  tensor = plain;
  measure();
  return count == 0 || !is_suspicious(data, device) || !Torch::get().begins_at_null(plain, data, item_size);
}

void TensorView::measure() {
  end = data;
  count = 0;
  row_major = true;
  for (int d = 0; d < ndim; ++d) {
    if (sizes[d] == 0) return;  // the other sizes and strides may be any
  }
  count = 1;
  int64_t last = 0;
  for (int d = ndim - 1; d >= 0; --d) {
    row_major = row_major && (sizes[d] == 1 || strides[d] == count);
    count *= sizes[d];
    last += (sizes[d] - 1) * strides[d];
  }
  end = data + (last + 1) * item_size;
}

bool TensorView::same_sizes(const TensorView& other) const {
  return ndim == other.ndim && std::equal(sizes, sizes + ndim, other.sizes);
}

bool TensorView::same_strides(const TensorView& other) const {
  if (row_major && other.row_major) return true;
  for (int d = 0; d < ndim; ++d) {
    if (sizes[d] > 1 && strides[d] != other.strides[d]) return false;
  }
  return true;
}

bool TensorView::expanded() const {
  for (int d = 0; d < ndim; ++d) {
    if (sizes[d] > 1 && strides[d] == 0) return true;
  }
  return false;
}

bool TensorView::is_negated() const {
  const TensorLayout* const layout = TensorLayout::get();
  return layout != nullptr ? layout->is_negated(layout->impl(tensor)) : Torch::get().is_negative(tensor);
}

std::string TensorView::shape() const {
  std::string text = "(";
  for (int d = 0; d < ndim; ++d) text += (d > 0 ? ", " : "") + std::to_string(sizes[d]);
  return text + (ndim == 1 ? ",)" : ")");
}

bool lies_on_cuda(py::handle tensor) {
  TensorView view;
  return Torch::get().is_plain(tensor.ptr()) && view.read(tensor.ptr()) && view.is_on_cuda();
}

bool is_number_on_cuda(py::handle tensor) {
  TensorView view;
  return Torch::get().is_plain(tensor.ptr()) && view.read(tensor.ptr()) && view.is_on_cuda() && view.count == 1;
}

const Layout* LayoutStore::add(const TensorView* views, int operands) {
  const int ndim = views[0].ndim;
  std::vector<int64_t>& numbers = numbers_.emplace_back(views[0].sizes, views[0].sizes + ndim);
  for (int k = 0; k < operands; ++k) numbers.insert(numbers.end(), views[k].strides, views[k].strides + ndim);
  return &layouts_.emplace_back(Layout{ndim, numbers.data(), numbers.data() + ndim});
}

void LayoutStore::clear() {
  layouts_.clear();
  numbers_.clear();
}

PointerSnapshot::PointerSnapshot(const TensorView& view)
    : tensor_(view.tensor), place_(TensorLayout::get() != nullptr ? find(view.tensor) : place_of(view)) {}

bool PointerSnapshot::is_still_true() const { return find(tensor_) == place_; }

PointerSnapshot::Place PointerSnapshot::find(PyObject* tensor) {
  if (const TensorLayout* layout = TensorLayout::get()) {  // on any device, and in a tenth of the time
    const TensorImplRef impl = layout->impl(tensor);
    if (const auto place = layout->place(impl); place.data != nullptr)
      return {place.data, geometry_of(place.type, int(layout->ndim(impl)), layout->sizes(impl), layout->strides(impl))};
  }
  TensorView view;
  return view.read(tensor) ? place_of(view) : Place{nullptr, 0};
}

PointerSnapshot::Place PointerSnapshot::place_of(const TensorView& view) {
  return {view.data, geometry_of(view.dtype ? uint64_t(*view.dtype) : uint64_t(kStoredDTypes), view.ndim, view.sizes,
                                 view.strides)};
}

}  // namespace fusedoptim::python
