#include "python/dtensor.h"

#include "python/torch.h"

namespace fusedoptim::python {
namespace {

// A class of a module that is imported only where somebody uses it; null until then.
class LateType {
 public:
  LateType(const char* module, const char* name) : module_(module), name_(name) {}

  bool is_of(py::handle object) {
    if (type_ == nullptr) type_ = find().release().ptr();  // lives as long as the process: torch's types do
    return reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) == type_;
  }

 private:
  py::object find() const {
    PyObject* module = PyDict_GetItemString(PyImport_GetModuleDict(), module_);
    // The name is missing while the module is being imported.
    return module == nullptr ? py::object() : py::getattr(module, name_, py::object());
  }

  const char* module_;
  const char* name_;
  PyObject* type_ = nullptr;
};

struct Names {
  py::object local = intern("_local_tensor"), spec = intern("_spec"), mesh = intern("mesh"),
             placements = intern("placements"), shard_order = intern("shard_order"), elem = intern("elem");

  static const Names& get() {
    static const Names* names = new Names();
    return *names;
  }
};

bool equal(const py::object& a, const py::object& b) {
  const int result = PyObject_RichCompareBool(a.ptr(), b.ptr(), Py_EQ);
  if (result < 0) throw py::error_already_set();
  return result == 1;
}

}  // namespace

bool DTensor::open(py::handle tensor) {
  static LateType dtensor("torch.distributed.tensor", "DTensor");
  static LateType awaited("torch.distributed._functional_collectives", "AsyncCollectiveTensor");
  if (!dtensor.is_of(tensor)) return false;
  const Names& names = Names::get();
  local_ = tensor.attr(names.local);
  spec_ = tensor.attr(names.spec);
  if (awaited.is_of(local_)) {
    local_.attr("trigger_wait")();
    local_ = local_.attr(names.elem);
  }
  return Torch::get().is_plain(local_.ptr());
}

bool DTensor::same_sharding(const DTensor& other) const {
  if (spec_.is(other.spec_)) return true;
  const Names& names = Names::get();
  const auto same = [&](const py::object& name) { return equal(spec_.attr(name), other.spec_.attr(name)); };
  if (!same(names.placements) || !same(names.mesh)) return false;
  // The order in which mesh dimensions shard the same tensor dimension.
  return equal(py::getattr(spec_, names.shard_order, py::none()),
               py::getattr(other.spec_, names.shard_order, py::none()));
}

bool DTensor::first_element(int ndim, const int64_t* sizes, int64_t& out) const {
  const Names& names = Names::get();
  const py::object whole = spec_.attr("shape");
  const py::tuple offsets = py::tuple(py::module_::import("torch.distributed.tensor._utils")
                                          .attr("compute_local_shape_and_global_offset")(
                                              whole, spec_.attr(names.mesh), spec_.attr(names.placements)))[1];
  int64_t row = 1;
  for (int d = 1; d < ndim; ++d) {
    if (py::cast<int64_t>(whole[py::int_(d)]) != sizes[d]) return false;
    row *= sizes[d];
  }
  out = ndim == 0 ? 0 : py::cast<int64_t>(offsets[0]) * row;
  return true;
}

bool DTensor::is_partial() const {
  static LateType shard("torch.distributed.tensor", "Shard"), replicate("torch.distributed.tensor", "Replicate");
  for (const py::handle placement : spec_.attr(Names::get().placements)) {
    if (shard.is_of(placement) || replicate.is_of(placement)) continue;
    if (py::cast<bool>(placement.attr("is_partial")())) return true;
  }
  return false;
}

}  // namespace fusedoptim::python
