// The second half of a step. All that can fail comes first; then state, step counts and elements are written.
#include <algorithm>
#include <cstring>

#include "cpu/run.h"
#include "python/general_path.h"

namespace fusedoptim::python {

bool Plan::commit(py::dict state, const cpu::InstructionSet& set, int threads, bool zero_grad, py::object grad_scale,
                  py::object found_inf, py::object drop_grads_of) {
  const Use use(*this);
  if (!gathered_) throw std::runtime_error("commit() follows a gather() that has returned");
  gathered_ = false;  // one that fails is not repeated: since then Python code may have exchanged what was seen
  RunOptions options;
  options.threads = threads;
  options.unscale = !grad_scale.is_none();
  if (options.unscale && (!tasks_.empty() || left_for_fast_path_))
    options.grad_scale = usual_if_nan(py::cast<double>(grad_scale));
  const bool grads_are_written = zero_grad || options.unscale;

  // Where parameters share memory, they are updated one after the other, as a loop over them would, and gradients are
  // zeroed after the last of them has been read. Of the order among those of both paths nothing is known, so then all
  // go through the general one.
  options.in_order = all_general_ && extents_.are_shared(grads_are_written);
  options.zero_grad = zero_grad && !options.in_order;
  if (!device_tasks_.empty()) {
    if (options.in_order) count_shared_steps();
    prepare_devices(options, grad_scale, found_inf);
  }
  const size_t count = rows_.size();
  const py::list written(grads_are_written ? 2 * count : count);
  for (size_t i = 0; i < count; ++i) {
    PyList_SET_ITEM(written.ptr(), i, rows_[i].param.inc_ref().ptr());
    if (grads_are_written) PyList_SET_ITEM(written.ptr(), count + i, rows_[i].grad.inc_ref().ptr());
  }
  const FreshState fresh = find_fresh_state(state);
  if (zero_grad) cut_grads_off();

  // From here on no Python code runs: what is as it was seen stays so.
  bool others_run;
  {
    const NoCollection no_collection;
    fast_count_ = 0;
    if (!is_as_seen(state.ptr())) return false;
    if (!all_general_) {
      if (!look(state.ptr(), zero_grad)) return false;
      all_general_ = extents_.are_shared(grads_are_written);
      if (all_general_) return false;
    }
    if (options.in_order && device_tasks_.empty()) count_shared_steps();
    // Every other step runs backwards: it begins with what the last step left in the caches.
    options.backwards = (turn_back_ = !turn_back_) && !options.in_order;
    const bool all_are_fast = tasks_.empty();
    if (!all_are_fast) tasks_.insert(tasks_.end(), fast_tasks_.begin(), fast_tasks_.begin() + fast_count_);
    const size_t task_count = all_are_fast ? fast_count_ : tasks_.size();
    schedule_.plan(all_are_fast ? fast_tasks_.data() : tasks_.data(), task_count, options);
    others_run = fast_count_ == 0 || schedule_.elements() >= kElementsPerRelease * int64_t(task_count);
    if (others_run && fast_count_ > 0 && !own_fast_rows()) return false;
    // A launch can fail: before anything is written on the host.
    if (!device_tasks_.empty()) driver_.launch();
    put_in(fresh);
    for (const Row& row : rows_) write_step(row.step);
    for (size_t i = 0; i < fast_count_; ++i) write_step(fast_rows_[i].step);
  }
  if (others_run) {
    const py::gil_scoped_release released;
    schedule_.run(set);
    if (zero_grad && options.in_order) cpu::zero_grads(tasks_);
  } else {
    schedule_.run(set);
  }
  if (zero_grad && options.in_order) {
    for (const Row& row : rows_) {
      if (row.on_device) row.grad.attr("zero_")();
    }
  }
  if (!rows_.empty()) Torch::get().bump_versions(written);
  finish_fast_rows(grads_are_written);
  if (!all_general_) forget_odd(state.ptr(), zero_grad);
  if (!drop_grads_of.is_none()) drop_grads(drop_grads_of);
  forget();
  return true;
}

// Whether memory, gradients, state and step counts are those that were gathered; counts on the host may have risen, by
// a step that another thread or the handler of a signal has taken since.
bool Plan::is_as_seen(PyObject* state) {
  for (const Seen& seen : seen_) {
    if (!seen.is_still_there()) return false;
  }
  for (Row& row : rows_) {
    if (Torch::get().is_plain(row.param.ptr()) && !Torch::get().grad(row.param).is(row.grad)) return false;
    if (row.states == 0 && !rule_.counts_steps) continue;
    PyObject* const own = find_by_hash(state, row.param.ptr(), row.hash);
    PyObject* entries[kMaxOwned + 1] = {};
    if (own != nullptr && (!PyDict_Check(own) || !is_transparent(own))) return false;
    if (own != nullptr) find_named(own, *row.group, row.states, entries);
    for (PyObject*& entry : entries) entry = entry == Py_None ? nullptr : entry;
    const int wanted = row.states + (rule_.counts_steps ? 1 : 0), average = row.states - 1;
    if (row.average_is_new) {
      if (entries[average] != nullptr) return false;
      entries[average] = row.entries[average];
    }
    if (row.is_new ? !is_new(*row.group, entries, row.states) : !std::equal(entries, entries + wanted, row.entries))
      return false;
    if (row.step.at == nullptr || row.step.on_device || !read_step(row.step)) continue;
    if (!device_tasks_.empty()) return false;  // what goes to the device has been prepared
    row.step.next = row.step.seen;
    Task& task = tasks_[row.task];
    task.next_step = row.step.next;
    task.constants = constants_for(*row.group, row.step.next, task.dtype);
    if (task.constants == nullptr || row.step.next <= 0) return false;
  }
  return true;
}

void Plan::write_step(const Step& step) {
  if (step.at == nullptr || step.on_device) return;
  const float next = float(step.next);
  step.is_double ? std::memcpy(step.at, &step.next, sizeof(double)) : std::memcpy(step.at, &next, sizeof(float));
}

void Plan::prepare_devices(const RunOptions& options, py::handle grad_scale, py::handle found_inf) {
  const Torch& torch = Torch::get();
  std::vector<cuda::DeviceRun> runs;
  for (const Row& row : rows_) {
    if (!row.on_device) continue;
    const int device = device_tasks_[row.task].device;
    auto run = std::find_if(runs.begin(), runs.end(), [&](const auto& known) { return known.device == device; });
    if (run == runs.end()) {
      runs.push_back({device, torch.current_stream({dlpack::kCuda, device})});
      run = runs.end() - 1;
      const auto number = [&](py::handle value) {
        return value.is_none() ? nullptr
                               : static_cast<const float*>(number_on(row.param, device, value, DType::f32).at);
      };
      run->found_inf = number(found_inf);
      run->grad_scale = number(grad_scale);
      run->capturing = driver_.is_capturing(device, run->stream);
    }
    if (row.step.at != nullptr && !row.step.on_device && run->capturing) {
      throw std::runtime_error(
          "Attempting CUDA graph capture of step(), but a step count lies on the host, where no graph raises it: "
          "construct the optimizer with capturable=True");
    }
  }
  with_torchs_memory(runs, [&] { driver_.prepare(device_tasks_, runs, options.zero_grad, options.in_order); });
}

void Plan::with_torchs_memory(const std::vector<cuda::DeviceRun>& runs, const std::function<void()>& prepare) {
  try {
    const py::gil_scoped_release released;
    prepare();
    return;
  } catch (const cuda::OutOfMemory&) {
    if (std::any_of(runs.begin(), runs.end(), [](const cuda::DeviceRun& run) { return run.capturing; })) throw;
  }
  Torch::get().give_back_cached_memory();
  const py::gil_scoped_release released;
  prepare();
}

void Plan::cut_grads_off() {
  for (const Row& row : rows_) {
    if (Torch::get().requires_grad(row.grad)) cut_off(row.grad);
  }
}

// The step count of a parameter that is listed twice rises with each time.
void Plan::count_shared_steps() {
  std::unordered_map<const char*, double> last;
  for (size_t i = 0; i < rows_.size(); ++i) {
    Step& step = rows_[i].step;
    if (step.at == nullptr || step.on_device) continue;
    const auto [found, first] = last.try_emplace(step.at, step.next);
    if (first) continue;
    found->second += 1;
    step.next = found->second = step.is_double ? found->second : double(float(found->second));
    Task& task = (rows_[i].on_device ? device_tasks_ : tasks_)[rows_[i].task];
    task.next_step = step.next;
    if (task.device_options == nullptr) task.constants = checked_constants(*rows_[i].group, step.next, task.dtype);
  }
}

// What is to be put where. Hashing a parameter is Python code, in torch, so it is done here; a dict that is put into
// another brings the hashes along.
Plan::FreshState Plan::find_fresh_state(py::dict state) const {
  FreshState found;
  py::dict whole;
  for (const Row& row : rows_) {
    if (!row.fresh_state) continue;
    PyObject* existing = find_by_identity(state.ptr(), row.param.ptr());
    if (existing == nullptr) {
      whole[row.param] = row.fresh_state;
    } else if (is_transparent(existing)) {
      found.emplace_back(py::reinterpret_borrow<py::object>(existing), row.fresh_state);
    } else {
      throw py::type_error("the state of a parameter must be a dict");
    }
  }
  if (!whole.empty()) found.emplace_back(state, whole);
  return found;
}

void Plan::put_in(const FreshState& fresh) {
  for (const auto& [own, made] : fresh) {
    if (PyODict_Check(own.ptr())) {  // keeps an order of its own beside the dict's
      PyObject *key, *value;
      for (Py_ssize_t at = 0; PyDict_Next(made.ptr(), &at, &key, &value);) {
        if (PyObject_SetItem(own.ptr(), key, value) != 0) throw py::error_already_set();
      }
    } else if (PyDict_Update(own.ptr(), made.ptr()) != 0) {
      throw py::error_already_set();
    }
  }
}

}  // namespace fusedoptim::python
