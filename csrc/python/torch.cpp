#include "python/torch.h"

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "python/tensor_layout.h"

namespace fusedoptim::python {

bool View::same_sizes(const View& other) const {
  return ndim == other.ndim && std::equal(sizes, sizes + ndim, other.sizes);
}

bool View::same_strides(const View& other) const {
  if (row_major && other.row_major) return true;
  for (int d = 0; d < ndim; ++d) {
    if (sizes[d] > 1 && strides[d] != other.strides[d]) return false;
  }
  return true;
}

bool View::expanded() const {
  for (int d = 0; d < ndim; ++d) {
    if (sizes[d] > 1 && strides[d] == 0) return true;
  }
  return false;
}

bool View::disjoint() const {
  int order[kMaxDims];
  int dims = 0;
  for (int d = 0; d < ndim; ++d) {
    if (sizes[d] > 1) order[dims++] = d;
  }
  std::sort(order, order + dims, [this](int a, int b) { return strides[a] < strides[b]; });
  int64_t reach = 0;  // offset of the last element that the dimensions so far can reach
  for (int i = 0; i < dims; ++i) {
    if (strides[order[i]] <= reach) return false;
    reach += (sizes[order[i]] - 1) * strides[order[i]];
  }
  return true;
}

namespace {

PyGetSetDef* getset(py::handle type, const char* name) {
  // torch._C.TensorBase defines these as C getters and setters; calling them directly skips the attribute look-up.
  const py::object descriptor = type.attr("__dict__")[name];
  if (Py_TYPE(descriptor.ptr()) != &PyGetSetDescr_Type) {
    throw std::runtime_error(std::string("torch.Tensor.") + name +
                             " is not the C attribute that it was in torch 2.10 to 2.13");
  }
  return reinterpret_cast<PyGetSetDescrObject*>(descriptor.ptr())->d_getset;
}

// Zeros that autograd never wrote, and storages that were freed, have no memory: their data is null, and that of a view
// of them lies as far from null as the view's offset. No other memory lies so low, as a rule; then torch is asked.
bool is_suspicious(const char* data, dlpack::Device device) {
  return reinterpret_cast<uintptr_t>(data) < uintptr_t(1) << (device.type == dlpack::kCpu ? 40 : 33);
}

py::object owned(PyObject* object) {
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

}  // namespace

Torch::Torch() {
  const py::module_ torch = py::module_::import("torch");
  const py::object tensor = torch.attr("Tensor");
  const py::object base = torch.attr("_C").attr("TensorBase");
  tensor_type_ = reinterpret_cast<PyTypeObject*>(tensor.ptr());
  parameter_type_ = reinterpret_cast<PyTypeObject*>(torch.attr("nn").attr("Parameter").ptr());
  const py::capsule api = tensor.attr("__dlpack_c_exchange_api__");
  api_ = api.get_pointer<dlpack::ExchangeApi>();
  while (api_ != nullptr && api_->version.major > dlpack::kMajorVersion) api_ = api_->older;
  if (api_ == nullptr || api_->version.major != dlpack::kMajorVersion || api_->view_from_object == nullptr) {
    throw std::runtime_error("this torch offers no DLPack 1.x exchange table");
  }
  grad_ = getset(base, "grad");
  requires_grad_ = getset(base, "requires_grad");
  version_ = getset(base, "_version");
  full_ = torch.attr("full");
  float32_ = torch.attr("float32");
  float64_ = torch.attr("float64");
  const py::object is_neg = base.attr("is_neg");
  PyMethodDef* const method = Py_TYPE(is_neg.ptr()) == &PyMethodDescr_Type
                                  ? reinterpret_cast<PyMethodDescrObject*>(is_neg.ptr())->d_method
                                  : nullptr;
  if (method == nullptr || method->ml_flags != METH_NOARGS)
    throw std::runtime_error("torch.Tensor.is_neg is not the C method that it was in torch 2.10 to 2.14");
  is_neg_ = method->ml_meth;
  storage_offset_ = base.attr("storage_offset");
  get_num_threads_ = torch.attr("get_num_threads");
  runs_function_modes_ = py::getattr(torch.attr("_C"), "_is_torch_function_mode_enabled", py::none());
  // The C function below torch.autograd.graph.increment_version: in Python code a signal's handler could raise.
  increment_version_ = py::getattr(torch.attr("_C"), "_increment_version", py::none());
  if (increment_version_.is_none()) increment_version_ = torch.attr("autograd").attr("graph").attr("increment_version");
}

const Torch& Torch::get() {
  static const Torch* torch = new Torch();  // lives as long as the process: torch's types do
  return *torch;
}

py::object Torch::grad(py::handle tensor) const {
  if (is_plain(tensor.ptr())) return owned(grad_->get(tensor.ptr(), grad_->closure));
  return tensor.attr("grad");
}

void Torch::clear_grad(py::handle tensor) const {
  if (!is_plain(tensor.ptr())) {
    tensor.attr("grad") = py::none();
  } else if (grad_->set(tensor.ptr(), Py_None, grad_->closure) != 0) {
    throw py::error_already_set();
  }
}

bool Torch::requires_grad(py::handle tensor) const {
  return owned(requires_grad_->get(tensor.ptr(), requires_grad_->closure)).is(py::handle(Py_True));
}

int64_t Torch::version(py::handle tensor) const {
  PyObject* const found = version_->get(tensor.ptr(), version_->closure);
  if (found != nullptr) return PyLong_AsLongLong(py::reinterpret_steal<py::object>(found).ptr());
  PyErr_Clear();
  return -1;
}

bool Torch::is_negative(py::handle tensor) const {
  return owned(is_neg_(tensor.ptr(), nullptr)).is(py::handle(Py_True));
}

int Torch::threads() const { return int(PyLong_AsLong(owned(PyObject_CallNoArgs(get_num_threads_.ptr())).ptr())); }

bool Torch::runs_function_modes() const {
  return runs_function_modes_.is_none() || runs_function_modes_().is(py::handle(Py_True));
}

bool Torch::view(PyObject* plain, View& out) const {
  dlpack::Tensor t;
  if (api_->view_from_object(plain, &t) != 0) {
    PyErr_Clear();
    return false;
  }
  if (t.ndim > kMaxDims) return false;
  char* data = static_cast<char*>(t.data) + t.byte_offset;
  if (std::find(t.sizes, t.sizes + t.ndim, 0) != t.sizes + t.ndim) {  // then the other sizes and strides may be any
    out = {data, data, 0, t.ndim, t.sizes, t.strides, t.device, t.dtype, true, plain};
    return true;
  }
  int64_t count = 1, last = 0;
  bool row_major = true;
  for (int d = t.ndim - 1; d >= 0; --d) {
    row_major = row_major && (t.sizes[d] == 1 || t.strides[d] == count);
    count *= t.sizes[d];
    last += (t.sizes[d] - 1) * t.strides[d];
  }
  if (is_suspicious(data, t.device) && begins_at_null(plain, data, t.dtype.bits / 8)) return false;
  char* end = data + (last + 1) * (t.dtype.bits / 8);
  out = {data, end, count, t.ndim, t.sizes, t.strides, t.device, t.dtype, row_major, plain};
  return true;
}

bool Torch::begins_at_null(py::handle plain, const char* data, int64_t item_size) const {
  if (data == nullptr) return true;
  return uintptr_t(py::cast<int64_t>(storage_offset_(plain)) * item_size) == reinterpret_cast<uintptr_t>(data);
}

namespace {

uint64_t geometry_of(uint64_t type, int ndim, const int64_t* sizes, const int64_t* strides) {
  uint64_t hash = type;
  const auto mix = [&hash](int64_t number) { hash = (hash ^ uint64_t(number)) * 0x9e3779b97f4a7c15u; };
  for (int d = 0; d < ndim; ++d) mix(sizes[d]), mix(strides[d]);
  return hash;
}

}  // namespace

Seen::Seen(const View& view)
    : tensor_(view.tensor), place_(Anatomy::get() != nullptr ? find(view.tensor) : place_of(view)) {}

bool Seen::is_still_there() const { return find(tensor_) == place_; }

Seen::Place Seen::find(PyObject* tensor) {
  if (const Anatomy* anatomy = Anatomy::get()) {  // on any device, and in a tenth of the time
    const Body body = anatomy->body(tensor);
    if (const auto place = anatomy->place(body); place.data != nullptr)
      return {place.data,
              geometry_of(place.type, int(anatomy->ndim(body)), anatomy->sizes(body), anatomy->strides(body))};
  }
  View view;
  return Torch::get().view(tensor, view) ? place_of(view) : Place{nullptr, 0};
}

Seen::Place Seen::place_of(const View& view) {
  DType dtype;
  return {view.data, geometry_of(dtype_of(view, dtype) ? uint64_t(dtype) : uint64_t(kDTypes), view.ndim, view.sizes,
                                 view.strides)};
}

py::object Torch::number_beside(py::handle param, py::handle number, bool wide) const {
  const py::object device = param.attr("device"), dtype = wide ? float64_ : float32_;
  if (py::hasattr(number, "to")) return number.attr("detach")().attr("to")(device, dtype);
  return full_(py::tuple(), number, py::arg("dtype") = dtype, py::arg("device") = device);
}

void* Torch::current_stream(dlpack::Device device) const {
  void* stream = nullptr;
  if (api_->current_work_stream == nullptr) throw std::runtime_error("this torch does not show its CUDA streams");
  if (api_->current_work_stream(device.type, device.index, &stream) != 0) throw py::error_already_set();
  return stream;
}

void Torch::give_back_cached_memory() const { py::module_::import("torch").attr("cuda").attr("empty_cache")(); }

bool is_on_cuda(py::handle value) {
  const Torch& torch = Torch::get();
  View view;
  return torch.is_plain(value.ptr()) && torch.view(value.ptr(), view) && view.device.type == dlpack::kCuda &&
         view.count == 1;
}

bool dtype_of(const View& view, DType& out) {
  const auto [code, bits, lanes] = view.type;
  if (lanes != 1) return false;
  if (code == dlpack::kFloat && bits == 32) {
    out = DType::f32;
  } else if (code == dlpack::kFloat && bits == 64) {
    out = DType::f64;
  } else if (code == dlpack::kBFloat && bits == 16) {
    out = DType::bf16;
  } else if (code == dlpack::kFloat && bits == 16) {
    out = DType::f16;
  } else {
    return false;
  }
  return true;
}

Py_hash_t hash_of(PyObject* tensor) {
  if (Torch::get().is_plain(tensor)) return Py_hash_t(reinterpret_cast<uintptr_t>(tensor));
  const Py_hash_t hash = PyObject_Hash(tensor);
  if (hash == -1) throw py::error_already_set();
  return hash;
}

PyObject* find_by_hash(PyObject* dict, PyObject* key, Py_hash_t hash) {
  PyObject* found = _PyDict_GetItem_KnownHash(dict, key, hash);
  if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return found;
}

PyObject* find_by_identity(PyObject* dict, PyObject* key) { return find_by_hash(dict, key, hash_of(key)); }

namespace {

py::handle default_dict() {
  static PyObject* const type = py::object(py::module_::import("collections").attr("defaultdict")).release().ptr();
  return type;
}

}  // namespace

bool is_known_dict(PyObject* mapping) {
  if (PyDict_CheckExact(mapping) || PyODict_CheckExact(mapping)) return true;
  return reinterpret_cast<PyObject*>(Py_TYPE(mapping)) == default_dict().ptr();
}

bool is_transparent(PyObject* mapping) {
  if (is_known_dict(mapping)) return true;
  if (!PyDict_Check(mapping)) return false;
  const py::handle type = reinterpret_cast<PyObject*>(Py_TYPE(mapping)),
                   dict = reinterpret_cast<PyObject*>(&PyDict_Type);
  for (const char* name : {"__getitem__", "__setitem__", "__len__", "get"}) {
    if (!type.attr(name).is(dict.attr(name))) return false;
  }
  const py::object plain_default = default_dict().attr("__missing__");
  return py::getattr(type, "__missing__", plain_default).is(plain_default);
}

std::string shape_text(const View& view) {
  std::string text = "(";
  for (int d = 0; d < view.ndim; ++d) text += (d > 0 ? ", " : "") + std::to_string(view.sizes[d]);
  return text + (view.ndim == 1 ? ",)" : ")");
}

}  // namespace fusedoptim::python
