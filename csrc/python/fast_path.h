// The fast path: parameters that are plain strided CPU tensors with gradient and state of one layout, which nearly all
// are. Everything is read from torch's own objects (tensor_layout.h), and between the look and the last write no Python
// code and no other thread runs, so that what was seen is what is written to. Whatever is not so, the first step of a
// parameter included, is left to the general path, before anything is written.
#pragma once

#include <array>
#include <vector>

#include "cpu/instruction_set.h"
#include "python/dict_cache.h"
#include "python/step_base.h"
#include "python/tensor_layout.h"

namespace fusedoptim::python {

class FastPath : public StepBase {
 public:
  // What a step that measures its gradients finds.
  struct Measured {
    bool may_skip = false;  // asked for, whatever the groups say
    bool is_clipped = false, is_skipped = false;
    double norm = 0;
    std::array<bool, kDTypes> dtypes = {};  // of the gradients that were measured
  };

  // Takes the whole step of an optimizer in one call where all its parameters are for the fast path, and it overrides
  // none of torch's parts. Else changes nothing and returns false. `grad_scale`: null for none. `clips`: what the
  // gradients of each group are multiplied by, or null: then it also refuses groups that ask for clipping or skipping,
  // unless `measured` is given: then it finds that itself.
  bool fast_step(py::handle optimizer, const cpu::InstructionSet& set, bool zero_grad, const double* grad_scale,
                 bool set_grads_to_none, const std::vector<double>* clips, Measured* measured);

 protected:
  FastPath(const std::string& rule, TorchParts torch_parts) : StepBase(rule, std::move(torch_parts)) {}
  ~FastPath() = default;

  struct Row {  // borrowed: nothing lets go of it between the look and the last write
    PyObject* object;
    TensorImplRef param, grad;
    PyObject* entries[kMaxEntries] = {};  // of its state, as `Owned` has them
    TensorImplRef impls[kMaxEntries];
    int entry_count = 0;
    StateNumbers numbers;
  };

  // ---- the look (fast_look.cpp) -------------------------------------------------------------------------------------
  // At all parameters that are not known to be odd, in the order in which torch takes them: fills the rows and tasks.
  // Whether it has found no other that is odd; it notes those.
  bool look(PyObject* state, bool zero_grad);
  // At one parameter; returns why it is not for the fast path, or null.
  const char* look_at(Group& group, Py_ssize_t index, Row& row, Task& task, PyObject* state, bool zero_grad);
  __attribute__((noinline)) bool add_of_other_dtype(int k, TensorImplRef tensor, Task& task);
  const char* look_at_storage(const Group& group, Py_ssize_t index, PyObject* own, Row& row, Task& task);
  const char* look_at_scales(PyObject* own, const Owned& owned, unsigned states, Row& row, Task& task);
  bool is_odd(const Position& position, size_t& next) const;  // `next`: in odd_, as positions come in their order
  // After a step, those that have become plain by it, as a parameter is after its first, are odd no more.
  void forget_odd(PyObject* state, bool zero_grad);

  // ---- the step (fast_path.cpp) -------------------------------------------------------------------------------------
  // Keeps alive what the step writes and reads while other threads run. False where that could exchange what was seen.
  bool own_fast_rows();
  void write_fast_numbers() const;
  void bump_fast_versions(bool grads_are_written) const;

  // Rows and tasks; a step writes over those of the last one.
  std::vector<Row> fast_rows_;
  std::vector<Task> fast_tasks_;
  size_t fast_count_ = 0;
  // Parameters that the last look found not to be for the fast path, in order: a hint, for each step looks at the
  // others anew, and the general path takes any. `all_general_`: it takes all of them in this step.
  std::vector<Position> odd_;
  bool all_general_ = true;
  DictCache dict_cache_;

 private:
  bool read_groups(py::handle groups, const std::vector<double>* clips, bool may_measure);
  // Finds norm and coefficients of the rows. False where that takes another look, as of float64 gradients that are
  // finite when their squares are not. No Python code runs.
  bool clip_fast_rows(const RunOptions& options, const cpu::InstructionSet& set, Measured& measured);
  template <class Number>
  const char* look_at_number(PyObject* object, TensorImplRef& tensor, Number& out);
  void fetch_ahead(size_t row) const;
};

}  // namespace fusedoptim::python
