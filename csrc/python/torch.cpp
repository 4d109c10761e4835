#include "python/torch.h"

#include <stdexcept>
#include <string>

namespace fusedoptim::python {
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
  bfloat16_ = torch.attr("bfloat16");
  float16_ = torch.attr("float16");
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

bool Torch::is_state_dtype(py::handle value) const {
  return value.is_none() || value.is(float32_) || value.is(bfloat16_) || value.is(float16_) ||
         (PyUnicode_Check(value.ptr()) && PyUnicode_CompareWithASCIIString(value.ptr(), "8bit") == 0);
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

bool Torch::view(PyObject* plain, dlpack::Tensor& out) const {
  if (api_->view_from_object(plain, &out) == 0) return true;
  PyErr_Clear();
  return false;
}

bool Torch::begins_at_null(py::handle plain, const char* data, int64_t item_size) const {
  if (data == nullptr) return true;
  return uintptr_t(py::cast<int64_t>(storage_offset_(plain)) * item_size) == reinterpret_cast<uintptr_t>(data);
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

}  // namespace fusedoptim::python
