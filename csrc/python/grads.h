// The gradients of many parameters at once: their norm, and their clipping where they are to be stored clipped.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "cpu/grads.h"
#include "python/memory_ranges.h"
#include "python/tensor_view.h"

namespace fusedoptim::python {

// Read once and owned from then on, so that an address seen again cannot be that of another tensor.
class Grads {
 public:
  // `lists`: of parameters, of which those that have no gradient are passed by. No mode of torch may be active.
  explicit Grads(py::iterable lists);

  int64_t count() const { return int64_t(found_.size()); }
  // Those that are not plain memory of the CPU, which only Python can measure and scale, in their order.
  py::list others() const;
  // The first of each dtype and device, in their order.
  py::list samples() const;

  // The sum of all squares, in the order of core/sum.h. `of_others`: those of `others()`, as doubles. `grad_scale`:
  // null, or what each element is divided by first, and rounded.
  double sum_squares(const std::vector<double>& of_others, const double* grad_scale, int threads,
                     const cpu::InstructionSet& set) const;

  // Divides all in place, of which none may be one of the others, and returns the sum of the squares of the quotients.
  double unscale(double grad_scale, int threads, const cpu::InstructionSet& set);

  // Multiplies all but the others, in place.
  void scale(double factor, int threads, const cpu::InstructionSet& set);

  // Whether each parameter has the gradient that was found, in the same memory, and it has not been written since, as
  // torch counts writes. After unscale(), the beginning of each is looked at as well: torch does not count what is
  // written through `grad.data`, or by a collective of torch.distributed.
  bool are_as_found(const cpu::InstructionSet& set) const;

 private:
  Grads() = default;
  struct Found {
    py::object param, grad;
    int64_t version = 0;
    const void* memory = nullptr;
    bool is_plain = false;  // else one of the others
  };
  bool add(py::handle grad);  // to grads_, or returns false
  static int64_t version_of(py::handle grad);
  static const void* memory_of(py::handle grad);  // what differs where a plain tensor got other memory
  py::list written() const;                       // those that are written here: all but the others

  std::vector<Found> found_;
  std::vector<cpu::Grad> grads_;
  LayoutStore layouts_;
  std::vector<double> beginnings_;  // the sums of their squares after unscale()
  MemoryRanges ranges_;
};

}  // namespace fusedoptim::python
