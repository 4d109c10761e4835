// What both paths of a step share: what was read of the groups, and the constants, names and step counts of parameters.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <deque>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/task.h"
#include "cpu/run.h"
#include "python/group_reader.h"
#include "python/memory_ranges.h"
#include "python/rules.h"
#include "python/torch_parts.h"

namespace fusedoptim::python {

// From so many elements a tensor on, the Python object of a gradient, which is what keeps it while other threads run,
// costs nothing that counts; below, the whole step is too short to let others run.
constexpr int64_t kElementsPerRelease = 4096;

// A param group, as read for one step.
struct Group {
  py::object dict, params;
  int index;
  double factor = 1, average_weight = 0;
  const double* norm = nullptr;  // on device `norm_device`, or null
  double max_norm = 0;
  int norm_device = kHost;
  bool averages = false;
  // What the fast path clips and skips by, and which of its rows are the group's.
  std::optional<double> limit;
  bool skips = false;
  size_t fast_begin = 0, fast_end = 0;
  StorageSettings storage;
  double step = 1;           // that the group counts
  uint32_t first_param = 0;  // its number among those of all groups
  // What the last parameter that was looked at owns, which a parameter of this variant and dtype does (-1: unknown),
  // and what these are called, borrowed.
  int owned_variant = -1;
  DType owned_param;
  Owned owned;
  PyObject* names[kMaxNamed];
  bool strict, all_general = false;
  Options options;
  std::vector<OptionOnDevice> on_device;                        // what is missing in `options`
  std::unique_ptr<Options> complete;                            // with those brought to the host, once needed there
  std::vector<std::pair<int, const DeviceOptions*>> by_device;  // with those brought to one device
};

// What the gradients of a group are multiplied by, of one number for each group or none.
double clip_of(const std::vector<double>& clips, Py_ssize_t group);

// Where a number of a parameter's state lies, and what it becomes.
struct StateNumber {
  char* at = nullptr;
  bool is_double = false, on_device = false;
  double seen = 1, next = 1;

  bool is_on_host() const { return at != nullptr && !on_device; }
  bool read();                                                                 // whether it has changed
  void write() const;                                                          // where it is on the host
  double rounded(double x) const { return is_double ? x : double(float(x)); }  // as it is stored

 protected:
  double load() const;
  bool see(double now);
};

// The step count: `seen` is what it becomes by one step, and `next` in this one, in which it may rise more than once.
struct StepCount : StateNumber {
  bool read();
};

// The step count and the rule's other numbers.
struct StateNumbers {
  StepCount step;
  StateNumber others[kMaxNumbers];
};

// One parameter of one group.
struct Position {
  int group;
  Py_ssize_t index;
  PyObject* param;  // only compared
  auto all() const { return std::make_tuple(group, index, param); }
  bool operator==(const Position& o) const { return all() == o.all(); }
  bool operator<(const Position& o) const { return all() < o.all(); }
};

class StepBase {
 public:
  // Whether neither the optimizer nor a mode that is active asks for torch's own step.
  bool is_ours(py::handle optimizer) const { return torch_parts_.are_unchanged(optimizer, Attributes(optimizer)); }

 protected:
  StepBase(const std::string& rule, TorchParts torch_parts);
  ~StepBase() = default;

  // One method at a time: Python code that a method runs, or another thread, must not find it half done.
  class Use {
   public:
    explicit Use(StepBase& step) : in_use_(step.in_use_) {
      if (in_use_) throw std::runtime_error("this executor is in use");
      in_use_ = true;
    }
    ~Use() { in_use_ = false; }
    Use(const Use&) = delete;

   private:
    bool& in_use_;
  };

  // All that was found for one step, since nothing that the user may change is remembered.
  virtual void forget();

  const Owned& owned_by(Group& group, int variant, DType param) const {
    const bool is_known = group.owned_variant == variant && group.owned_param == param;
    return is_known ? group.owned : find_owned(group, variant, param);
  }
  // What they are called, but for scales.
  PyObject* const* names_of(Group& group, const Owned& owned) const {
    if (group.owned_variant < 0 || !(group.owned == owned)) set_owned(group, owned);
    return group.names;
  }
  // Finds what is called so in a parameter's state, a dict; null where it has none. False unless all are there. Runs no
  // Python code.
  static bool find_each(PyObject* own, PyObject* const* names, int wanted, PyObject** entries);
  // Finds the scales of states, which have a bit each; they are put behind the others. Runs no Python code.
  bool find_scales(PyObject* own, const Owned& owned, unsigned states, PyObject** entries) const;

  const Owned& find_owned(Group& group, int variant, DType param) const;
  void set_owned(Group& group, const Owned& owned) const;
  // Null if too large for the arithmetic. Says what the rule's numbers become.
  const void* constants_for(Group& group, StateNumbers& numbers, DType dtype) {
    const unsigned doubles = dtype == DType::f64 ? 1 : 0;
    if (constants_group_ != &group || constants_of_.step != numbers.step.next || constants_doubles_ != doubles ||
        rule_.number_count > 0)
      make_constants(group, numbers, dtype);
    return constants_fit_ ? constants_.back().bytes : nullptr;
  }
  void make_constants(Group& group, StateNumbers& numbers, DType dtype);

  // Once the options of a group are read: what the step will write to it, if this is such a rule. Of each group once,
  // whoever takes the step of its parameters.
  void note_group_numbers(const py::object& dict, const Options& options);
  void write_group_numbers() const;

  const RuleEntry& rule_;
  const TorchParts torch_parts_;
  std::vector<py::object> names_, scale_names_;  // of the states
  std::vector<py::object> number_names_;
  py::object average_name_, step_name_, companion_names_[kCompanions];

  std::deque<Group> groups_;
  std::vector<std::pair<py::object, std::array<py::object, kMaxGroupNumbers>>> group_numbers_;
  std::vector<py::object> kept_;  // tensors that other threads may take out of the state, or of a DTensor, meanwhile
  std::deque<Constants> constants_;
  const Group* constants_group_ = nullptr;  // what the last of constants_ was made of
  Numbers constants_of_;
  unsigned constants_doubles_ = 0;  // the arithmetic (1), and each of the numbers as it is stored
  bool constants_fit_ = true;

  // What is kept between steps: a step that finds the same addresses finds the same answer.
  MemoryRanges ranges_;
  cpu::Schedule schedule_;
  bool reverse_order_ = true;
  bool in_use_ = false;
};

}  // namespace fusedoptim::python
