// The general path: any parameter that the kernels take, on any device and in any layout, with new state or a part of
// it. It has two halves: `prepare` reads and checks and changes nothing, `apply` looks once more at what was seen, and
// writes. Parameters that are for the fast path it leaves to that, which takes them within `apply`.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda/run.h"
#include "python/fast_path.h"
#include "python/refusals.h"
#include "python/tensor_view.h"

namespace fusedoptim::python {

// What the gradients of each group are clipped to, as far as they are, by a norm that lies on their device.
struct Limits {
  const double* norm = nullptr;
  int device = kHost;
  std::vector<std::optional<double>> of_groups;
};

class GeneralPath final : public FastPath {
 public:
  GeneralPath(const std::string& rule, TorchParts torch_parts) : FastPath(rule, std::move(torch_parts)) {}

  // Reads the groups, and what is not for the fast path. `state` is the optimizer's state dict; `new_state(param,
  // group)` makes the state of a parameter that has none, as a dict; `write_grads`: the step will also write to the
  // gradients. Returns None, or, where some parameters are not for the kernels, one list per group of those that torch
  // must take. `clips`: what the gradients of each group are multiplied by, or none; `limits`: what clips them besides.
  // A group with fused=True raises for such a parameter, unless only torch can know what it means.
  py::object prepare(py::iterable groups, py::object state, py::object new_state, bool write_grads,
                     const std::vector<double>& clips = {}, const Limits& limits = {});

  // Whether what was prepared can only be skipped by the host, not by a number on a device. A parameter on the host is
  // one reason, a step count there another, and a rule whose first step is another one.
  bool is_skipped_by_host() const { return skipped_by_host_; }

  // Takes the step, or returns false, with nothing written, where something has been exchanged since it was prepared:
  // then it must be prepared anew. `zero_grad`: also write zeros over the gradients. `grad_scale`: divide the gradients
  // by it first. `found_inf`, a number on a CUDA device or None: the step is taken only if it is 0.
  // `set_to_none_in`: groups whose gradients are dropped once the step is taken, or None. From the last look at the
  // tensors to the end no Python code runs, and so no signal's handler.
  bool apply(py::dict state, const cpu::InstructionSet& set, int threads, bool zero_grad, py::object grad_scale,
             py::object found_inf, py::object set_to_none_in);

  void clear();  // raises while another method runs

  // For each parameter with a gradient (group, index, who, why): who of "fast path", "general path", "torch" and
  // "nobody" would take it, and why none of those before. Changes nothing.
  py::list explain(py::iterable groups, py::object state, py::object new_state);

  // Writes zeros over the gradients of all parameters, as Optimizer.zero_grad(set_to_none=False) does; or returns
  // false, where a mode of torch is active, unless told to go on.
  bool zero_grads(py::iterable groups, int threads, bool even_if_watched);

 private:
  struct PreparedParam {
    Group* group;
    py::object param, grad;
    Py_hash_t hash;        // of the parameter
    py::object new_state;  // entries that the optimizer's state does not have yet; null if it has them all
    Owned owned;
    PyObject* entries[kMaxEntries];                  // as found in the state; kept_ owns them
    unsigned in_8bit = 0;                            // which states have scales
    bool is_new = false;                             // all but what may come later
    bool any_late = false, is_late[kMaxNamed] = {};  // what comes now
    bool average_is_new() const { return any_late && owned.averages && is_late[owned.average_at()]; }
    StateNumbers numbers;
    bool on_device;
    size_t task;  // its number in device_tasks_ or tasks_
  };
  struct Reason {
    int group;
    Py_ssize_t index;
    const char* why;    // the kernels do not take it; null if they do
    std::string error;  // what a step would raise
  };
  using NewState = std::vector<std::pair<py::object, py::object>>;  // a dict, and what is put into it

  void forget() override;

  // ---- what is prepared (prepare.cpp) -------------------------------------------------------------------------------
  Group& read_group(const GroupReader& reader, const py::object& dict, const py::object& params, int index,
                    const std::vector<double>& clips, const Limits& limits);
  // Whether a parameter that has a gradient is prepared, or noted; else torch is to take it. `group`: null where that
  // is asked for.
  bool prepare_param(Group* group, py::handle dict, const Position& position, py::object grad, py::handle state,
                     py::handle new_state, bool write_grads);
  // Returns why the kernels cannot take the parameter, or null.
  const char* add(Group& group, const Position& position, py::object grad, PyObject* state, py::handle new_state,
                  bool write_grads);

  // ---- its state (prepare_state.cpp) --------------------------------------------------------------------------------
  // Has the state made where all of it is missing, or the average. Whether Python code ran.
  bool find_or_make_state(PreparedParam& row, PyObject* state, py::handle new_state, DType dtype, int& variant);
  // Whether all are there.
  bool find_entries(PyObject* state, Group& group, const Owned& owned, PyObject** entries);
  // Whether an entry may be missing beside others: what a group asks for only since later steps.
  bool may_be_late(const Owned& owned, int entry) const;
  bool is_new(const Owned& owned, PyObject* const* entries) const;  // but for those
  // Of states in 8 bits; returns why the kernels cannot take them, or null.
  const char* read_scales(PreparedParam& row, PyObject* state, const LocalPair& local, const Views& views);
  const char* prepare_numbers(PyObject* const* entries, const TensorView& param, PreparedParam& row);
  template <class Number>
  const char* prepare_number(PyObject* name, PyObject* tensor, const TensorView& param, Number& out);

  // ---- its task (tasks.cpp) -----------------------------------------------------------------------------------------
  // Returns why the kernels cannot take it, or null.
  const char* add_task(PreparedParam& row, const LocalPair& local, const Views& views, int variant, bool is_uniform,
                       uint32_t number);
  FUSEDOPTIM_INLINE void add_range(const TensorView& view, bool is_grad) {
    if (view.count == 0) return;
    ranges_.add(view.data, view.end, is_grad);
    snapshots_.emplace_back(view);
  }
  const void* checked_constants(Group& group, StateNumbers& numbers, DType dtype);
  void advance_shared_numbers();

  // ---- CUDA devices (devices.cpp) -----------------------------------------------------------------------------------
  const DeviceOptions* options_on(Group& group, py::handle param, int device);
  DeviceNumber number_on(py::handle param, int device, py::handle number, DType copy);
  void prepare_devices(const RunOptions& options, py::handle grad_scale, py::handle found_inf);
  // Lets the driver prepare, and once more if torch's allocator held the memory that it needs.
  static void with_torchs_memory(const std::vector<cuda::DeviceRun>& runs, const std::function<void()>& prepare);

  // ---- what is applied (apply.cpp) ----------------------------------------------------------------------------------
  // Whether memory, gradients, state and step counts are those that were prepared; counts on the host may have risen,
  // by a step that another thread or the handler of a signal has taken since.
  bool is_as_seen(PyObject* state);
  void detach_grads();
  // What is to be put where, when nothing can fail any more.
  NewState find_new_state(py::dict state) const;

  // What was prepared for one step.
  std::vector<PreparedParam> rows_;
  std::unordered_map<PyObject*, py::object> new_state_;  // by parameter, one of which may be listed twice
  std::vector<Task> tasks_;                              // for the host
  std::vector<Task> device_tasks_;
  std::deque<DeviceOptions> device_options_;
  LayoutStore layouts_;
  TensorView scale_views_[kMaxStates];  // of the parameter that is being prepared
  std::vector<PointerSnapshot> snapshots_;
  bool skipped_by_host_ = false, prepared_ = false, left_for_fast_path_ = false;
  std::vector<Reason>* reasons_ = nullptr;  // where `prepare` notes them, in place of raising; null in a step
  cuda::Driver driver_;
};

}  // namespace fusedoptim::python
