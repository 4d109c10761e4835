// The operands of a task that are not all stored in one dtype. Each is read into registers by how it is stored, and
// rounded back, in one pass: with a pass for each operand, through buffers in the first-level cache, nothing is
// computed while memory is waited for, and a step takes half as long again.
#pragma once

#include "core/task.h"
#include "cpu/instruction_set.h"
#include "cpu/simd/random.h"
#include "cpu/simd/with_stored.h"

namespace fusedoptim::FUSEDOPTIM_ISA {

// What does not depend on the rule.
class MixedTask {
 public:
  using V = Pair;
  static constexpr int kAtOnce = 2 * V::kLanes;
  static_assert(kBlockOf8Bits % V::kLanes == 0 && RandomStream::kMost % kBlockOf8Bits == 0);

  MixedTask(const Task& task, void* const* at, int64_t first, double factor)
      : task_(task), first_(first), states_(task.operand_count - 2 - task.averages - has_companion()) {
    for (int k = 0; k < task.operand_count; ++k) places_[k].at = at[k];
    places_[0].companion = has_companion() ? at[task.operand_count - 1] : nullptr;
    for (int k = 0; k < task.operand_count; ++k) stored_[k] = find(k);
    const bool clips = factor != 1 && factor != -1;
    rounds_grad_ = clips && stored_[1] != Stored::f32;
  }

  // Prepares the next piece, of at most `left` elements, and returns how many it has.
  FUSEDOPTIM_SIMD int64_t begin(int64_t left) {
    if (!has_random_ && task_.blocks.columns == 0) return left;
    int64_t n = left < RandomStream::kMost ? left : RandomStream::kMost;
    if (task_.blocks.columns != 0) n = begin_blocks(n);
    if (has_random_) begin_random(n);
    return n;
  }
  // Completes it.
  FUSEDOPTIM_SIMD void end(int64_t n) {
    if (task_.blocks.columns != 0) write_codes(n);
    for (int k = 0; k < task_.operand_count; ++k)
      places_[k].at = static_cast<char*>(places_[k].at) + n * int64_t(size_of(task_.dtypes[k]));
    if (places_[0].companion != nullptr) places_[0].companion = places_[task_.operand_count - 1].at;
    first_ += n;
  }

  FUSEDOPTIM_SIMD V param(int64_t i) const {
    V v;
    with_param(stored_[0], [&](auto stored) { read(v, stored, places_[0], i); });
    return v;
  }
  FUSEDOPTIM_SIMD V grad(int64_t i, float factor) const {
    V v;
    with_number(stored_[1], [&](auto stored) { read(v, stored, places_[1], i); });
    v = v * V(factor);
    if (rounds_grad_) round_grad(v);
    return v;
  }
  FUSEDOPTIM_SIMD V state(int k, int64_t i) const {
    V v;
    with_state(stored_[2 + k], [&](auto stored) { read(v, stored, places_[2 + k], i); });
    return v;
  }
  FUSEDOPTIM_SIMD void put_param(int64_t i, const V& v) const {
    with_param(stored_[0], [&](auto stored) { write(v, stored, places_[0], i); });
    if (task_.averages) move_average(i);
  }
  FUSEDOPTIM_SIMD void put_state(int k, int64_t i, const V& v) const {
    with_state(stored_[2 + k], [&](auto stored) { write(v, stored, places_[2 + k], i); });
  }
  // Before elements from `i` on, where that is a multiple of kAtOnce.
  __attribute__((noinline)) void prepare(int64_t i) {
    for (int k = 0; k < task_.operand_count; ++k) {
      const int64_t size = int64_t(size_of(task_.dtypes[k]));
      const char* at = static_cast<const char*>(places_[k].at) + i * size + kAhead;
      for (const char* const end = at + kAtOnce * size; at < end; at += kLine) __builtin_prefetch(at);
    }
  }

  // Elements from `i` on, fewer than make a V: calls `update` for copies of them, behind which zeros follow.
  template <class Update>
  __attribute__((noinline)) void rest(int64_t i, int64_t n, Update update) {
    alignas(64) char copies[kMaxOperands][V::kLanes * sizeof(float)] = {};
    Place before[kMaxOperands];
    for (int k = 0; k < task_.operand_count; ++k) {
      const size_t size = size_of(task_.dtypes[k]);
      before[k] = places_[k];
      std::memcpy(copies[k], static_cast<char*>(places_[k].at) + i * int64_t(size), size_t(n) * size);
      places_[k].at = copies[k];
      places_[k].random += places_[k].random != nullptr ? i : 0;
      places_[k].wide += places_[k].wide != nullptr ? i : 0;
      places_[k].scales += places_[k].scales != nullptr ? i / kBlockOf8Bits : 0;
    }
    if (places_[0].companion != nullptr) places_[0].companion = copies[task_.operand_count - 1];
    update();
    for (int k = 0; k < task_.operand_count; ++k) {
      const size_t size = size_of(task_.dtypes[k]);
      places_[k] = before[k];
      if (k != 1 && places_[k].wide == nullptr)
        std::memcpy(static_cast<char*>(places_[k].at) + i * int64_t(size), copies[k], size_t(n) * size);
    }
  }

  // For a loop over certain storages.
  const Stored* stored() const { return stored_; }
  bool averages() const { return task_.averages; }
  bool rounds_grad() const { return rounds_grad_; }
  const Place& place(int k) const { return places_[k]; }
  FUSEDOPTIM_SIMD RandomStream& stream(int k) { return streams_[k == 0 ? 0 : k - 1]; }

 private:
  bool has_companion() const { return task_.companion != Companion::none; }

  Stored find(int k) {
    const DType dtype = task_.dtypes[k];
    if (k == 0 && has_companion()) {
      const bool is_bf16 = dtype == DType::bf16;
      if (task_.companion == Companion::master) return is_bf16 ? Stored::master_bf16 : Stored::master_f16;
      if (task_.companion == Companion::remainder) return Stored::remainder;
      return is_bf16 ? Stored::compensated_bf16 : Stored::compensated_f16;
    }
    const Coding coding = k < 2 + states_ ? task_.codings[k] : Coding::nearest;
    if (coding == Coding::stochastic || coding == Coding::magnitude) {
      has_random_ = true;
      stream(k).start(RandomKey::of(task_.seed, task_.next_step, task_.parameter, k));
      return coding == Coding::stochastic ? Stored::stochastic : Stored::magnitude;
    }
    if (coding == Coding::sign) return Stored::sign;
    return dtype == DType::f32 ? Stored::f32 : dtype == DType::bf16 ? Stored::bf16 : Stored::f16;
  }

  template <class S>
  FUSEDOPTIM_SIMD static void read(V& v, S, const Place& place, int64_t i) {
    v = S::template read<false>(place, i);
  }
  template <class S>
  FUSEDOPTIM_SIMD static void write(const V& v, S, const Place& place, int64_t i) {
    S::template write<false>(place, i, v);
  }

  // As it would be stored: what is clipped is rounded before the rule reads it.
  FUSEDOPTIM_SIMD void round_grad(V& v) const {
    v = without_nan_bits(v);
    v = stored_[1] == Stored::bf16 ? nearest_even<BFloat16>(v) : nearest_even<Half>(v);
  }

  // Towards the parameter as it is stored.
  __attribute__((noinline)) void move_average(int64_t i) const {
    V param, average;
    const int k = 2 + states_;
    const DType dtype = task_.dtypes[0];
    const Stored own = dtype == DType::f32 ? Stored::f32 : dtype == DType::bf16 ? Stored::bf16 : Stored::f16;
    with_number(own, [&](auto stored) { read(param, stored, places_[0], i); });
    if (!task_.average_is_new) {
      with_number(stored_[k], [&](auto stored) { read(average, stored, places_[k], i); });
      param = Lerp<float>(task_.average_weight)(average, param);
    }
    with_number(stored_[k], [&](auto stored) { write(param, stored, places_[k], i); });
  }

  bool is_random(int k) const { return stored_[k] == Stored::stochastic || stored_[k] == Stored::magnitude; }

  __attribute__((noinline)) void begin_random(int64_t n) {
    for (int k = 0; k < 2 + states_; ++k) {
      if (is_random(k)) places_[k].random = stream(k).make(task_.first_element + first_, n);
    }
  }

  // A piece is a whole number of blocks, or the rest of a row.
  __attribute__((noinline)) int64_t begin_blocks(int64_t left) {
    const int64_t columns = task_.blocks.columns, in_row = columns - first_ % columns;
    const int64_t n = in_row < left ? in_row : left, block = task_.blocks.of(first_);
    for (int k = 2; k < 2 + states_; ++k) {
      if (!is_8bit(task_.codings[k])) continue;
      places_[k].scales = task_.scales[k] + block;
      places_[k].wide = wide_[k - 2];
    }
    return n;
  }
  __attribute__((noinline)) void write_codes(int64_t n) {
    for (int k = 2; k < 2 + states_; ++k) {
      if (places_[k].wide == nullptr) continue;
      for (int64_t i = n; i % (4 * kFloats) != 0; ++i) places_[k].wide[i] = 0;
      if (stored_[k] == Stored::sign) {
        EightBits<Coding::sign>::write_codes(places_[k], n);
      } else {
        EightBits<Coding::magnitude>::write_codes(places_[k], n);
      }
    }
  }

  const Task& task_;
  int64_t first_;
  int states_;
  bool rounds_grad_ = false, has_random_ = false;
  Stored stored_[kMaxOperands];
  Place places_[kMaxOperands];
  RandomStream streams_[kMaxStates + 1];
  alignas(64) float wide_[kMaxStates][RandomStream::kMost + V::kLanes];
};

}  // namespace fusedoptim::FUSEDOPTIM_ISA
