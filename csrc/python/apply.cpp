// The second half of a step. All that can fail comes first; then state, step counts and elements are written.
#include <algorithm>

#include "core/nan.h"
#include "cpu/run.h"
#include "python/general_path.h"
#include "python/mappings.h"
#include "python/torch.h"
#include "python/zero_grad.h"

namespace fusedoptim::python {

bool GeneralPath::apply(py::dict state, const cpu::InstructionSet& set, int threads, bool zero_grad,
                        py::object grad_scale, py::object found_inf, py::object set_to_none_in) {
  const Use use(*this);
  if (!prepared_) throw std::runtime_error("apply() follows a prepare() that has returned");
  prepared_ = false;  // one that fails is not repeated: since then Python code may have exchanged what was seen
  RunOptions options;
  options.threads = threads;
  options.unscale = !grad_scale.is_none();
  if (options.unscale && (!tasks_.empty() || left_for_fast_path_))
    options.grad_scale = canonicalize_nan(py::cast<double>(grad_scale));
  const bool grads_are_written = zero_grad || options.unscale;

  // Where parameters share memory, they are updated one after the other, as a loop over them would, and gradients are
  // zeroed after the last of them has been read. Of the order among those of both paths nothing is known, so then all
  // go through the general one.
  options.in_order = all_general_ && ranges_.overlap(grads_are_written);
  options.zero_grad = zero_grad && !options.in_order;
  if (!device_tasks_.empty()) {
    if (options.in_order) advance_shared_numbers();
    prepare_devices(options, grad_scale, found_inf);
  }
  const size_t count = rows_.size();
  const py::list written(grads_are_written ? 2 * count : count);
  for (size_t i = 0; i < count; ++i) {
    PyList_SET_ITEM(written.ptr(), i, rows_[i].param.inc_ref().ptr());
    if (grads_are_written) PyList_SET_ITEM(written.ptr(), count + i, rows_[i].grad.inc_ref().ptr());
  }
  const NewState new_state = find_new_state(state);
  if (zero_grad) detach_grads();

  // From here on no Python code runs, so that nothing changes between this look and the writes.
  bool others_run;
  {
    const NoCollection no_collection;
    fast_count_ = 0;
    if (!is_as_seen(state.ptr())) return false;
    if (!all_general_) {
      if (!look(state.ptr(), zero_grad)) return false;
      all_general_ = ranges_.overlap(grads_are_written);
      if (all_general_) return false;
    }
    if (options.in_order && device_tasks_.empty()) advance_shared_numbers();
    // Every other step runs backwards: it begins with what the last step left in the caches.
    options.backwards = (reverse_order_ = !reverse_order_) && !options.in_order;
    const bool all_are_fast = tasks_.empty();
    if (!all_are_fast) tasks_.insert(tasks_.end(), fast_tasks_.begin(), fast_tasks_.begin() + fast_count_);
    const size_t task_count = all_are_fast ? fast_count_ : tasks_.size();
    schedule_.plan(all_are_fast ? fast_tasks_.data() : tasks_.data(), task_count, options);
    others_run = fast_count_ == 0 || schedule_.elements() >= kElementsPerRelease * int64_t(task_count);
    if (others_run && fast_count_ > 0 && !own_fast_rows()) return false;
    // A launch can fail: before anything is written on the host.
    if (!device_tasks_.empty()) driver_.launch();
    for (const auto& [own, made] : new_state) update(own.ptr(), made.ptr());
    for (const PreparedParam& row : rows_) {
      row.numbers.step.write();
      for (int i = 0; i < row.owned.numbers; ++i) row.numbers.others[i].write();
    }
    write_fast_numbers();
  }
  if (others_run) {
    const py::gil_scoped_release released;
    schedule_.run(set);
    if (zero_grad && options.in_order) cpu::zero_grads(tasks_);
  } else {
    schedule_.run(set);
  }
  if (zero_grad && options.in_order) {
    for (const PreparedParam& row : rows_) {
      if (row.on_device) row.grad.attr("zero_")();
    }
  }
  if (!rows_.empty()) Torch::get().bump_versions(written);
  bump_fast_versions(grads_are_written);
  if (!all_general_) forget_odd(state.ptr(), zero_grad);
  write_group_numbers();
  if (!set_to_none_in.is_none()) set_grads_to_none(set_to_none_in);
  forget();
  return true;
}

// Whether memory, gradients, state and step counts are those that were prepared; counts on the host may have risen, by
// a step that another thread or the handler of a signal has taken since.
bool GeneralPath::is_as_seen(PyObject* state) {
  for (const PointerSnapshot& snapshot : snapshots_) {
    if (!snapshot.is_still_true()) return false;
  }
  for (PreparedParam& row : rows_) {
    if (Torch::get().is_plain(row.param.ptr()) && !Torch::get().grad(row.param).is(row.grad)) return false;
    const Owned& owned = row.owned;
    if (owned.named == 0) continue;
    PyObject* const own = find_by_hash(state, row.param.ptr(), row.hash);
    PyObject* entries[kMaxEntries];
    const int named = owned.named;
    if (own == nullptr) {
      std::fill(entries, entries + named, nullptr);
    } else {
      if (!PyDict_Check(own) || !is_transparent(own)) return false;
      find_each(own, names_of(*row.group, owned), named, entries);
    }
    for (int k = 0; k < named; ++k) {
      if (entries[k] == Py_None) entries[k] = nullptr;
      if (!row.any_late || !row.is_late[k]) continue;
      if (entries[k] != nullptr) return false;
      entries[k] = row.entries[k];
    }
    if (row.is_new && !is_new(owned, entries)) return false;
    int wanted = row.is_new ? 0 : named;
    if (!row.is_new && row.in_8bit != 0) {
      if (own == nullptr || !find_scales(own, owned, row.in_8bit, entries)) return false;
      for (unsigned bits = row.in_8bit; bits != 0; bits &= bits - 1) ++wanted;
    }
    if (!std::equal(entries, entries + wanted, row.entries)) return false;
    StepCount& step = row.numbers.step;
    if (!step.is_on_host()) continue;
    bool changed = step.read();
    for (int i = 0; i < owned.numbers; ++i) changed = row.numbers.others[i].read() || changed;
    if (!changed) continue;
    if (!device_tasks_.empty()) return false;  // what goes to the device has been uploaded
    step.next = step.seen;
    Task& task = tasks_[row.task];
    task.next_step = step.next;
    task.constants = constants_for(*row.group, row.numbers, task.dtype);
    if (task.constants == nullptr || step.next <= 0) return false;
  }
  return true;
}

void GeneralPath::detach_grads() {
  for (const PreparedParam& row : rows_) {
    if (Torch::get().requires_grad(row.grad)) detach_grad(row.grad);
  }
}

// What is to be put where. Hashing a parameter is Python code, in torch, so it is done here; a dict that is put into
// another brings the hashes along.
GeneralPath::NewState GeneralPath::find_new_state(py::dict state) const {
  NewState found;
  py::dict whole;
  for (const PreparedParam& row : rows_) {
    if (!row.new_state) continue;
    PyObject* existing = find_by_identity(state.ptr(), row.param.ptr());
    if (existing == nullptr) {
      whole[row.param] = row.new_state;
    } else if (is_transparent(existing)) {
      found.emplace_back(py::reinterpret_borrow<py::object>(existing), row.new_state);
    } else {
      throw py::type_error("the state of a parameter must be a dict");
    }
  }
  if (!whole.empty()) found.emplace_back(state, whole);
  return found;
}

}  // namespace fusedoptim::python
