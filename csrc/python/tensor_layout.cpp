#include "python/tensor_layout.h"

#include <stdexcept>
#include <vector>

namespace fusedoptim::python {

namespace py = pybind11;

namespace {

void expect(bool truth, const char* what) {
  if (!truth) throw std::runtime_error(std::string("this torch keeps ") + what + " elsewhere");
}

uint64_t address(py::handle value) { return py::cast<uint64_t>(value); }

// The one place from `begin` to `end` where a word lies.
int find(TensorImplRef object, int begin, int end, uint64_t word, const char* what) {
  int found = -1;
  for (int at = begin; at <= end; at += 8) {
    if (object.read<uint64_t>(at) != word) continue;
    expect(found < 0, what);
    found = at;
  }
  expect(found >= 0, what);
  return found;
}

TensorImplRef cdata(py::handle tensor) {
  return TensorImplRef(reinterpret_cast<const char*>(address(tensor.attr("_cdata"))));
}

// On the CPU, whatever the user's default device and dtype are.
py::object zeros(py::handle shape, const char* dtype = "float32", const char* device = "cpu") {
  const py::module_ torch = py::module_::import("torch");
  return torch.attr("zeros")(shape, py::arg("dtype") = torch.attr(dtype), py::arg("device") = device);
}

py::object zeros(int size) { return zeros(py::int_(size)); }

TensorImplRef storage_of(py::handle tensor) { return cdata(tensor.attr("untyped_storage")()); }

}  // namespace

TensorLayout::TensorLayout() {
  const py::module_ torch = py::module_::import("torch");
  probe_places(torch);
  probe_types();
  const py::object tensor = zeros(py::make_tuple(2, 3, 4, 5));
  const std::vector<py::object> plain = {
      zeros(py::tuple()),
      zeros(0),
      zeros(7),
      tensor,
      tensor.attr("transpose")(0, 1),
      tensor.attr("transpose")(1, 3),
      tensor.attr("select")(0, 1).attr("select")(2, 2),
      tensor.attr("unsqueeze")(2),
      tensor.attr("expand")(9, 2, 3, 4, 5),
      torch.attr("nn").attr("Parameter")(tensor),
      tensor.attr("detach")(),
      tensor.attr("double")(),
      tensor.attr("half")(),
      tensor.attr("bfloat16")(),
      tensor.attr("contiguous")(py::arg("memory_format") = torch.attr("channels_last")),
  };
  for (const py::object& each : plain) check(each);
  for (const py::object& each : plain) check_version(each);
  for (const py::object& each : plain) {
    const uint64_t before = address(each.attr("_version"));
    bump_version(impl(each.ptr()));
    expect(address(each.attr("_version")) == before + 1, "a tensor's version");
  }
  const py::object is_sparse = zeros(3).attr("to_sparse")(), is_long = zeros(py::make_tuple(1, 1, 1, 1, 1, 1));
  const py::object is_conjugate = zeros(py::int_(3), "complex64").attr("conj")();
  const py::object is_meta = zeros(py::int_(3), "float32", "meta"),
                   is_zero = torch.attr("_efficientzerotensor")(3, py::arg("device") = "cpu");
  for (const py::object& each : {is_sparse, is_long, is_conjugate, is_meta, is_zero, torch.attr("_neg_view")(tensor)}) {
    expect(!is_plain_strided(impl(each.ptr())), "what distinguishes its kinds of tensor");
  }
  negative_key_ = impl(torch.attr("_neg_view")(tensor).cast<py::object>().ptr()).read<uint64_t>(keys()) ^ plain_keys_;
  expect((negative_key_ & (negative_key_ - 1)) == 0, "what tells a negated view");
  const py::object is_copied_on_write = torch.attr("_lazy_clone")(zeros(3));
  expect(data(impl(is_copied_on_write.ptr()), 4) == nullptr, "what is to be copied when it is written");
}

void TensorLayout::probe_places(py::handle torch) {
  const py::object tensor = zeros(py::make_tuple(2, 3));
  py::object grad = zeros(py::make_tuple(2, 3));
  const py::object param = torch.attr("nn").attr("Parameter")(tensor.attr("clone")());
  const py::object without = torch.attr("nn").attr("Parameter")(zeros(3));
  const TensorImplRef python_object(reinterpret_cast<const char*>(tensor.ptr()));
  impl_ = find(python_object, 16, 40, address(tensor.attr("_cdata")), "a tensor's object");
  const TensorImplRef impl = cdata(tensor), storage = storage_of(tensor);
  storage_ = find(impl, 16, 72, uint64_t(storage.at()), "a tensor's storage");
  object_ = find(impl, storage_ + 8, 80, uint64_t(tensor.ptr()), "a tensor's Python object");
  // A tensor over borrowed memory, since a storage holds the address of its own memory twice.
  const py::object bytes = py::reinterpret_steal<py::object>(PyByteArray_FromStringAndSize("12345678", 8));
  const py::object borrowed = torch.attr("frombuffer")(bytes, py::arg("dtype") = torch.attr("float32"));
  data_ = find(storage_of(borrowed), 16, 40, address(borrowed.attr("data_ptr")()), "a storage's memory");
  expect(storage.read<uint64_t>(data_ + 32) == address(tensor.attr("nbytes")), "a storage's size");
  // Of the words between, a plain tensor that autograd does not know has the counter of its versions, and in older
  // torch one that is the same for all tensors: whose interpreter the Python object belongs to.
  const TensorImplRef other = cdata(grad);
  for (int at = storage_ + 8; at < object_; at += 8) {
    if (impl.read<uint64_t>(at) == other.read<uint64_t>(at)) continue;
    expect(version_ == 0, "a tensor's version");
    version_ = at;
  }
  expect(version_ != 0, "a tensor's version");
  const TensorImplRef param_impl = cdata(param);
  for (int at = storage_ + 8; at < object_; at += 8) {
    if (impl.read<uint64_t>(at) != 0 || param_impl.read<uint64_t>(at) == 0) continue;
    expect(autograd_ == 0, "what autograd knows of a tensor");
    autograd_ = at;
  }
  expect(autograd_ != 0, "what autograd knows of a tensor");
  param.attr("grad") = grad;
  grad_ = find(param_impl.follow(autograd_), 8, 72, address(grad.attr("_cdata")), "a tensor's gradient");
  undefined_ = cdata(without).follow(autograd_).follow(grad_);
  expect(bool(undefined_) && !(undefined_ == cdata(grad)), "a tensor's gradient");
  expect(this->grad(param_impl) == cdata(grad) && !this->grad(cdata(without)) && !this->grad(impl),
         "a tensor's gradient");
  PyObject* const seen = grad.ptr();
  grad = py::none();  // now the parameter alone keeps it
  PyObject* const kept = object(other);
  expect(kept == nullptr || kept == seen, "a tensor's Python object");
  param.attr("grad") = py::none();
  expect(!this->grad(param_impl), "a tensor's gradient");
  plain_keys_ = impl.read<uint64_t>(keys());
}

void TensorLayout::probe_types() {
  for (int i = 0; i < kStoredDTypes; ++i) {
    types_[i] = type(cdata(zeros(py::int_(1), torch_name(DType(i)))));
    for (int k = 0; k < i; ++k) expect(types_[k] != types_[i], "a tensor's dtype");
  }
}

void TensorLayout::check(py::handle tensor) const {
  const TensorImplRef it = impl(tensor.ptr());
  expect(it == cdata(tensor), "a tensor's object");
  expect(object(it) == tensor.ptr(), "a tensor's Python object");
  expect(is_plain_strided(it), "what distinguishes its kinds of tensor");
  const auto numbers = [](py::handle sequence) {
    std::vector<int64_t> all;
    for (const py::handle each : sequence) all.push_back(py::cast<int64_t>(each));
    return all;
  };
  const std::vector<int64_t> real_sizes = numbers(tensor.attr("shape"));
  const std::vector<int64_t> real_strides = numbers(tensor.attr("stride")());
  expect(ndim(it) == real_sizes.size() && count(it) == py::cast<int64_t>(tensor.attr("numel")()), "a tensor's sizes");
  for (size_t d = 0; d < real_sizes.size(); ++d) {
    expect(sizes(it)[d] == real_sizes[d] && strides(it)[d] == real_strides[d], "a tensor's sizes and strides");
  }
  DType known;
  expect(dtype(it, known), "a tensor's dtype");
  const int64_t item_size = py::cast<int64_t>(tensor.attr("element_size")());
  expect(int64_t(size_of(known)) == item_size, "a tensor's dtype");
  if (count(it) > 0) {
    expect(uint64_t(data(it, item_size)) == address(tensor.attr("data_ptr")()), "a tensor's memory");
  }
}

// Torch counts first, to a number that no two of the tensors checked share; only where each was found is one added.
void TensorLayout::check_version(py::handle tensor) const {
  const TensorImplRef it = impl(tensor.ptr());
  const auto is_found = [&] {
    const char* counter = it.read<const char*>(version_);
    return counter != nullptr && TensorImplRef(counter).read<uint32_t>(kVersion) == address(tensor.attr("_version"));
  };
  for (int times = 0; times < 3; ++times) {
    expect(is_found(), "a tensor's version");
    py::module_::import("torch").attr("_C").attr("_increment_version")(py::make_tuple(tensor));
  }
  expect(is_found(), "a tensor's version");
}

const TensorLayout* TensorLayout::known_ = nullptr;

void TensorLayout::probe() {
  if (known_ == nullptr) known_ = new TensorLayout();  // lives as long as the process
}

}  // namespace fusedoptim::python
