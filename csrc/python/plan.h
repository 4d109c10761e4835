// A step in two halves: `gather` reads and checks everything and changes nothing; `commit` writes.
#pragma once

#include <pybind11/pybind11.h>

#include <deque>
#include <string>
#include <vector>

#include "core/task.h"
#include "cpu/instruction_set.h"
#include "python/rules.h"
#include "python/tensor.h"

namespace fusedoptim::python {

class Plan {
 public:
  explicit Plan(const std::string& rule) : rule_(find_rule(rule)) {}

  // Reads all groups. `state` is the optimizer's state dict; `new_state(param, group)` makes the state of a parameter
  // that has none, as a dict. Returns None, or, where some parameters are not for the kernels, one list per group of
  // those that torch must take. A group with fused=True raises for such a parameter.
  py::object gather(py::list groups, py::dict state, py::function new_state);

  // Takes the step. `zero_grad`: also write zeros over the gradients. `grad_scale`: divide the gradients by it first.
  void commit(py::dict state, const cpu::InstructionSet& set, int threads, bool zero_grad, py::object grad_scale);

  void clear();

 private:
  struct Group {
    py::object dict;
    int index;
    bool maximize, strict;
    Options options;
  };
  struct Row {
    const Group* group;
    py::object param, grad, state;  // state: the dict that is, or at commit becomes, the parameter's
    bool fresh;                     // `state` holds entries that the optimizer's state does not have yet
    DType dtype;
    int variant, operand_count;
    View operands[kMaxOperands];
    char* step;  // where the step count lies; null where the rule counts none
    bool step_is_double;
  };

  // Each returns why the kernels cannot take the parameter, or null.
  const char* add_row(const Group& group, py::handle param, py::object grad, PyObject* state, py::handle new_state);
  const char* view_operands(Row& row, PyObject* state, py::handle new_state);
  const char* view_step(Row& row, py::handle step) const;
  const char* check_memory(const Row& row, int operands) const;

  bool memory_is_shared(bool grads_are_written);
  void build_tasks(bool zero_in_pass);
  void add_layout(const Row& row, Task& task);
  void check_zeroable() const;
  void adopt_fresh_state(py::dict state);

  const RuleEntry& rule_;
  std::deque<Group> groups_;
  std::vector<Row> rows_;

  // Scratch of commit; kept between steps for its capacity.
  std::vector<Task> tasks_;
  std::vector<Constants> constants_;
  std::deque<Layout> layouts_;
  std::deque<std::vector<int64_t>> layout_numbers_;
  struct Range {
    const char* begin;
    const char* end;
    bool written;
  };
  std::vector<Range> ranges_;
};

// Resets the gradients of all parameters as torch.optim.Optimizer.zero_grad does.
void zero_grad(py::list groups, bool set_to_none, int threads);

}  // namespace fusedoptim::python
