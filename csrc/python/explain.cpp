// Who takes each parameter, and why nobody quicker does.
#include <algorithm>

#include "python/general_path.h"
#include "python/torch.h"

namespace fusedoptim::python {

py::list GeneralPath::explain(py::iterable groups, py::object state, py::object new_state) {
  std::vector<Reason> reasons;
  struct Noting {
    GeneralPath& path;
    ~Noting() {
      path.reasons_ = nullptr;
      if (!path.in_use_) path.forget();
    }
  } const noting{*this};
  reasons_ = &reasons;
  all_general_ = true;
  prepare(std::move(groups), state, std::move(new_state), false);
  const TensorLayout* layout = TensorLayout::get();
  const bool is_shared = ranges_.overlap(false);
  Row row;
  Task task;
  py::list found;
  for (const Reason& each : reasons) {
    const auto group = std::find_if(groups_.begin(), groups_.end(), [&](Group& g) { return g.index == each.group; });
    const char* why_not_fast = "this is no release of torch that the fast path is used on";
    if (layout != nullptr && group != groups_.end()) {
      row.object = PyList_GET_ITEM(group->params.ptr(), each.index);
      why_not_fast = "it is no plain tensor";
      if (Torch::get().is_plain(row.object)) {
        row.param = layout->impl(row.object);
        row.grad = layout->grad(row.param);
        dict_cache_.begin();
        fast_count_ = 0;
        why_not_fast = look_at(*group, each.index, row, task, state.ptr(), false);
        if (why_not_fast == nullptr && is_shared) why_not_fast = "tensors of the step share memory";
      }
    }
    const bool is_error = !each.error.empty();
    found.append(py::make_tuple(each.group, each.index,
                                is_error                  ? "nobody"
                                : each.why != nullptr     ? "torch"
                                : why_not_fast != nullptr ? "general path"
                                                          : "fast path",
                                is_error                  ? each.error
                                : each.why != nullptr     ? each.why
                                : why_not_fast != nullptr ? why_not_fast
                                                          : ""));
  }
  return found;
}

}  // namespace fusedoptim::python
