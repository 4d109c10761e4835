// Reads the options of a param group.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <optional>
#include <vector>

#include "python/mappings.h"
#include "python/storage.h"
#include "rules/rule.h"

namespace fusedoptim::python {

// An option that was left on its CUDA device: a tensor in place of a double of the rule's options.
struct OptionOnDevice {
  pybind11::object tensor;
  const double* place;
};

// Reads numbers from a param group: from a dict, or through the methods of any other mapping. Tensors with one element
// count as numbers; those on a CUDA device stay there, as entries of `on_device`, if that is not null and the rule lets
// them. `index`: of the group, for errors.
class GroupReader {
 public:
  explicit GroupReader(pybind11::handle group, int index, std::vector<OptionOnDevice>* on_device = nullptr)
      : group_(group), index_(index), is_transparent_(python::is_transparent(group.ptr())), on_device_(on_device) {}
  void operator()(const char* name, double& out) const;
  void operator()(const char* name, double& out, OnDevice) const;
  void operator()(const char* name, double& first, double& second) const;  // a pair, such as betas, within [0, 1)
  void operator()(const char* name, double& first, double& second, OnDevice) const;
  void operator()(const char* name, double& first, double& second, AnyPair) const;
  void operator()(const char* name, double& first, double& second, double& third) const;
  void operator()(const char* name, bool& out) const;
  // Whether a dict has any of the settings below, which most groups lack: faster than reading each.
  bool may_have_settings() const;
  // Reads max_grad_norm and skip_nonfinite; false where one is not simply a number, or not in its range.
  bool clipping(std::optional<double>& max_norm, bool& skips) const;
  bool average(double& weight) const;  // whether the group asks for averages, and 1 - ema_decay
  void storage(const RuleEntry& rule, StorageSettings& out) const;
  bool flag(const char* name) const;  // false where the group lacks it
  pybind11::object params() const;    // a list, of what any other iterable yields
  bool has_list() const;              // of parameters, exactly
  bool asks_for_torch() const;        // the user asked for torch's own implementation
  bool is_transparent() const { return is_transparent_; }

 private:
  pybind11::object find(const char* name) const;  // null where the group lacks it
  pybind11::object item(const char* name) const;
  PyObject* list_of_dict() const;  // of parameters, borrowed; null where the group is no dict with a list of them
  pybind11::object setting(const char* name) const;  // as find, but no dict makes what it lacks
  double number(pybind11::handle value, const char* name, const double* place, bool may_stay) const;
  void several(const char* name, std::initializer_list<double*> places, bool may_stay, bool is_any) const;

  pybind11::handle group_;
  int index_;
  bool is_transparent_;
  std::vector<OptionOnDevice>* on_device_;
};

}  // namespace fusedoptim::python
