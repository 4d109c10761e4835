// A step. The fast path (fast_step) takes it in one call where everything is ordinary. The general path has two halves:
// `gather` reads and checks and changes nothing, `commit` looks once more at what was seen, and writes. Parameters that
// are not ordinary go through the general path, and the others with them, in its second half, through the fast one.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/task.h"
#include "cpu/instruction_set.h"
#include "cpu/run.h"
#include "cuda/run.h"
#include "python/dict_cache.h"
#include "python/dtensor.h"
#include "python/memory_ranges.h"
#include "python/rules.h"
#include "python/tensor_layout.h"
#include "python/torch.h"

namespace fusedoptim::python {

// From so many elements a tensor on, the Python object of a gradient, which is what keeps it while other threads run,
// costs nothing that counts; below, the whole step is too short to let others run.
constexpr int64_t kElementsPerRelease = 4096;

// What the gradients of each group are clipped to, as far as they are, by a norm that lies on their device.
struct Limits {
  const double* norm = nullptr;
  int device = kHost;
  std::vector<std::optional<double>> of_groups;
};

class Plan {
 public:
  // `torch_parts`: pairs of a name and a function, the methods that the step of torch's class calls. `mode_checks`:
  // functions that return 0 or None unless a mode of torch is active. `forward_ad`: the names of torch's module.
  // `watch_operations`: whether those that are active do more than to choose a device, or None for always.
  explicit Plan(const std::string& rule, py::iterable torch_parts = py::tuple(), py::iterable mode_checks = py::tuple(),
                py::object forward_ad = py::dict(), py::object watch_operations = py::none());

  // Takes the whole step of an optimizer at once where all parameters and what belongs to them are plain CPU tensors of
  // one layout, their state is there, and the optimizer overrides none of torch's parts. Else changes nothing and
  // returns false. `grad_scale`: null for none. `clips`: what the gradients of each group are multiplied by, or null:
  // then it also refuses groups that ask for clipping or skipping, unless `measured` is given: then it finds that
  // itself.
  struct Measured {
    bool may_skip = false;  // asked for, whatever the groups say
    bool is_clipped = false, is_skipped = false;
    double norm = 0;
    std::array<bool, kDTypes> dtypes = {};  // of the gradients that were measured
  };
  bool fast_step(py::handle optimizer, const cpu::InstructionSet& set, bool zero_grad, const double* grad_scale,
                 bool drop_grads, const std::vector<double>* clips, Measured* measured);

  // Whether neither the optimizer nor a mode that is active asks for torch's own step.
  bool is_ours(py::handle optimizer) const { return is_ours(optimizer, Attributes(optimizer)); }

  // Reads the groups, and what is not for the fast path. `state` is the optimizer's state dict; `new_state(param,
  // group)` makes the state of a parameter that has none, as a dict; `write_grads`: the step will also write to the
  // gradients. Returns None, or, where some parameters are not for the kernels, one list per group of those that torch
  // must take. `clips`: what the gradients of each group are multiplied by, or none; `limits`: what clips them besides.
  // A group with fused=True raises for such a parameter, unless only torch can know what it means.
  py::object gather(py::iterable groups, py::object state, py::object new_state, bool write_grads,
                    const std::vector<double>& clips = {}, const Limits& limits = {});

  // Whether what was gathered can only be skipped by the host, not by a number on a device. A parameter on the host is
  // one reason, a step count there another, and a rule whose first step is another one.
  bool is_skipped_by_host() const { return skipped_by_host_; }

  // Takes the step, or returns false, with nothing written, where something has been exchanged since it was gathered:
  // then it must be gathered anew. `zero_grad`: also write zeros over the gradients. `grad_scale`: divide the gradients
  // by it first. `found_inf`, a number on a CUDA device or None: the step is taken only if it is 0. `drop_grads_of`:
  // groups whose gradients are dropped once the step is taken, or None. From the last look at the tensors to the end no
  // Python code runs, and so no signal's handler.
  bool commit(py::dict state, const cpu::InstructionSet& set, int threads, bool zero_grad, py::object grad_scale,
              py::object found_inf, py::object drop_grads_of);

  void clear();  // raises while another method runs

  // For each parameter with a gradient (group, index, who, why): who of "fast path", "general path", "torch" and
  // "nobody" would take it, and why none of those before. Changes nothing.
  py::list explain(py::iterable groups, py::object state, py::object new_state);

  // Writes zeros over the gradients of all parameters, as Optimizer.zero_grad(set_to_none=False) does; or returns
  // false, where a mode of torch is active, unless told to go on.
  bool zero_grads(py::iterable groups, int threads, bool even_if_watched);

 private:
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
    int named = -1;  // so many of a parameter's own tensors are called as follows, borrowed
    PyObject* names[kMaxOwned + 1];
    bool strict, all_general = false;
    Options options;
    std::vector<OptionOnDevice> on_device;                        // what is missing in `options`
    std::unique_ptr<Options> complete;                            // with those brought to the host, once needed there
    std::vector<std::pair<int, const DeviceOptions*>> by_device;  // with those brought to one device
  };
  struct Step {  // where a parameter's step count lies, and what it becomes
    char* at = nullptr;
    bool is_double = false, on_device = false;
    double seen = 1, next = 1;  // what it becomes by one step, and in this one, in which it may rise more than once
  };
  struct Row {
    Group* group;
    py::object param, grad;
    Py_hash_t hash;                    // of the parameter
    py::object fresh_state;            // entries that the optimizer's state does not have yet; null if it has them all
    PyObject* entries[kMaxOwned + 1];  // as found in the state, its step behind them; kept_ owns them
    int states;                        // of them, the average included
    bool is_new = false, average_is_new = false;  // all but its average; the average
    Step step;
    bool on_device;
    size_t task;  // its number in device_tasks_ or tasks_
  };
  struct FastRow {  // borrowed: nothing lets go of it between the look and the last write
    PyObject* object;
    Body param, grad;
    PyObject* entries[kMaxOwned + 1] = {};  // of its state, and its step behind them
    Body bodies[kMaxOwned + 1];
    Step step;
  };
  struct Attributes {  // of an optimizer
    explicit Attributes(py::handle optimizer);
    py::object all, groups, state;
  };
  struct Place {  // of a parameter
    int group;
    Py_ssize_t index;
    PyObject* param;  // only compared
    auto all() const { return std::make_tuple(group, index, param); }
    bool operator==(const Place& o) const { return all() == o.all(); }
    bool operator<(const Place& o) const { return all() < o.all(); }
  };
  using Views = View[kMaxOperands];
  using FreshState = std::vector<std::pair<py::object, py::object>>;  // a dict, and what is put into it
  class Use {  // One method at a time: Python code that a method runs, or another thread, must not find it half done.
   public:
    explicit Use(Plan& plan) : in_use_(plan.in_use_) {
      if (in_use_) throw std::runtime_error("this plan is in use");
      in_use_ = true;
    }
    ~Use() { in_use_ = false; }
    Use(const Use&) = delete;

   private:
    bool& in_use_;
  };

  // These return why the kernels cannot take the parameter, or null. `whole`: the parameter, if it is a DTensor.
  const char* add(Group& group, py::handle param, py::object grad, PyObject* state, py::handle new_state,
                  bool write_grads);
  const char* open_shards(py::handle param, py::handle grad, DTensor& whole, py::handle& local, py::handle& local_grad);
  const char* view_param_and_grad(Views& views, py::handle param, py::handle grad, DType& dtype);
  const char* open_states(Group& group, int count, PyObject** entries,
                          const DTensor* whole);  // puts what they hold in their place
  const char* view_states(Views& views, Group& group, int count, PyObject* const* entries);
  const char* view_step(PyObject* tensor, const View& param, Step& out);

  // The fast path. Some of these return why a parameter is not for it, or null.
  bool is_ours(py::handle optimizer, const Attributes& attributes) const;
  bool is_watched() const;  // by a mode of torch
  bool has_torchs_parts(py::handle optimizer, py::handle attributes) const;
  bool read_groups(py::handle groups, const std::vector<double>* clips, bool may_measure);
  bool look(PyObject* state, bool zero_grad);  // at all that is not odd; what turns out to be is added to odd_
  const char* look_at(Group& group, FastRow& row, Task& task, PyObject* state, bool zero_grad);
  const char* look_at_step(PyObject* object, Body& tensor, Step& out);
  void fetch_ahead(size_t row) const;
  bool find_named(PyObject* own, Group& group, int states, PyObject** entries) const;
  bool own_fast_rows();
  // Finds norm and coefficients of rows on the fast path. False where that takes another look, as of float64 gradients
  // that are finite when their squares are not. No Python code runs.
  bool clip_fast_rows(const RunOptions& options, const cpu::InstructionSet& set, Measured& measured);
  void finish_fast_rows(bool grads_are_written);
  bool is_odd(const Place& place, size_t& next) const;  // `next`: in odd_, as places are asked for in their order
  void forget_odd(PyObject* state, bool zero_grad);

  // What a parameter's own tensors are called, of which there are `states`, and its step: the average follows the
  // rule's.
  PyObject* const* names_of(Group& group, int states) const;
  int states_of(const Group& group, int variant) const { return rule_.states_of(variant) + (group.averages ? 1 : 0); }
  bool is_new(const Group& group, PyObject* const* entries, int count) const;  // but for its average
  void find_entries(PyObject* state, Group& group, int count, PyObject** entries);
  void add_range(const View& view, bool is_grad);
  void add_task(Row& row, const Views& views, DType dtype, int variant, int operands);
  void forget();
  static bool read_step(Step& step);  // whether it has changed
  static void write_step(const Step& step);
  const void* constants_for(Group& group, double step, DType dtype);  // null if too large for the arithmetic
  const void* checked_constants(Group& group, double step, DType dtype);
  const DeviceOptions* options_on(Group& group, py::handle param, int device);
  static bool is_dense(Body tensor);
  const Layout* add_layout(const Views& views, int operands);
  bool is_as_seen(PyObject* state);
  void cut_grads_off();
  void count_shared_steps();
  void prepare_devices(const RunOptions& options, py::handle grad_scale, py::handle found_inf);
  // Lets the driver prepare, and once more if torch's allocator held the memory that it needs.
  void with_torchs_memory(const std::vector<cuda::DeviceRun>& runs, const std::function<void()>& prepare);
  DeviceNumber number_on(py::handle param, int device, py::handle number, DType copy);
  FreshState find_fresh_state(py::dict state) const;
  static void put_in(const FreshState& fresh);

  const RuleEntry& rule_;
  std::vector<py::object> names_;  // of the states, and "step" behind them where the rule counts steps
  py::object average_name_ = intern("ema");
  std::vector<std::pair<py::object, py::object>> torch_parts_;
  std::vector<py::object> mode_checks_;
  py::object forward_ad_, watch_operations_;

  // What gather found; cleared after each step, for nothing that the user may change is remembered.
  std::deque<Group> groups_;
  std::vector<Row> rows_;
  std::vector<py::object> kept_;  // tensors that other threads may take out of the state, or of a DTensor, meanwhile
  std::unordered_map<PyObject*, py::object> fresh_;  // new state by parameter, one of which may be listed twice
  std::vector<Task> tasks_;                          // for the host
  std::vector<Task> device_tasks_;
  std::deque<Constants> constants_;
  std::deque<DeviceOptions> device_options_;
  bool skipped_by_host_ = false;
  std::deque<Layout> layouts_;
  std::deque<std::vector<int64_t>> layout_numbers_;
  std::vector<Seen> seen_;
  const Group* folded_group_ = nullptr;  // what the last of constants_ was folded from
  double folded_step_ = 0;
  bool folded_double_ = false, folded_fits_ = true;

  // What is kept between steps; a step that finds the same addresses finds the same answer.
  Extents extents_;
  Positions positions_;
  // Rows and tasks of the fast path; a step writes over those of the last one.
  std::vector<FastRow> fast_rows_;
  std::vector<Task> fast_tasks_;
  size_t fast_count_ = 0;
  // Parameters that the last look found not to be for the fast path, in order: a hint, for each step looks at the
  // others anew, and the general path takes any. `all_general_`: it takes all of them in this step.
  std::vector<Place> odd_;
  bool all_general_ = true, left_for_fast_path_ = false;
  cpu::Schedule schedule_;
  bool turn_back_ = true;
  bool in_use_ = false, gathered_ = false;
  struct Reason {
    int group;
    Py_ssize_t index;
    const char* why;    // the kernels do not take it; null if they do
    std::string error;  // what a step would raise
  };
  std::vector<Reason>* reasons_ = nullptr;  // where gather notes them, in place of raising; null in a step
  cuda::Driver driver_;
};

// Drops the gradients of all parameters, as torch.optim.Optimizer.zero_grad does.
void drop_grads(py::iterable groups);

// Writes zeros over a new tensor, as torch's own filling does, but in threads that a forked child has as well; or
// returns false, if it is not plain memory of the CPU.
bool zero(py::handle tensor, int threads);

// Stops autograd from following a gradient that is about to be zeroed, as Optimizer.zero_grad does.
void cut_off(py::handle grad);

}  // namespace fusedoptim::python
