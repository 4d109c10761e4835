// Tasks whose operands are not all stored in one dtype: a block of each is brought into float32 in the first-level
// cache, updated there by the kernel for float32, and rounded back. Operands in float32 are updated where they lie.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/task.h"
#include "cpu/instruction_set.h"

namespace fusedoptim::cpu {

class MixedBlock {
 public:
  static constexpr int64_t kElements = 1024;  // of a block: whole blocks of 8 bits, where there are any

  MixedBlock(const Task& task, const InstructionSet& set) : task_(task), set_(set) {}

  // Updates up to kElements elements, which begin at `at`. `first`: the number of the first of them in the task.
  void update(void* const* at, int64_t first, int64_t count, double factor) {
    first_ = first;
    count_ = count;
    const bool clips = std::fabs(factor) != 1 && size_of(task_.dtypes[1]) == 2;
    void* values[kMaxOperands];
    alignas(64) uint16_t clipped[kElements];
    for (int k = 0; k < rule_operands(); ++k) {
      void* from = at[k];
      if (k == 1 && clips) {  // rounded as it is stored, before the rule reads it
        set_.scale[int(task_.dtypes[1])](from, clipped, count, factor);
        from = clipped;
      }
      values[k] = read(k, from, at[task_.operand_count - 1]);
    }
    set_.kernels[task_.rule][task_.variant][int(DType::f32)](task_.constants, values, 0, count, clips ? 1 : factor, 0);
    for (int k = 0; k < rule_operands(); ++k) {
      if (k != 1) write(k, static_cast<float*>(values[k]), at[k], at[task_.operand_count - 1]);
    }
    if (task_.averages) move_average(at, static_cast<float*>(values[0]));
  }

 private:
  int rule_operands() const { return task_.operand_count - task_.averages - (task_.companion != Companion::none); }
  bool is_in_place(int k) const { return task_.dtypes[k] == DType::f32 && !is_8bit(task_.codings[k]); }

  float* read(int k, void* from, const void* companion) {
    float* const to = buffers_[k];
    const int dtype = int(task_.dtypes[k]);
    if (k == 0 && task_.companion != Companion::none) {
      set_.storage.read_pair[int(task_.companion)][dtype](from, companion, to, count_);
    } else if (is_8bit(task_.codings[k])) {
      for_blocks(k, from, to, [&](auto i, uint8_t* codes, float* values, int64_t n, float& scale) {
        set_.storage.read_8bit[i](codes, scale, values, n);
      });
    } else if (is_in_place(k)) {
      return static_cast<float*>(from);
    } else {
      set_.storage.read[dtype](from, to, count_);
    }
    return to;
  }

  void write(int k, float* from, void* to, void* companion) {
    const int dtype = int(task_.dtypes[k]);
    if (k == 0 && task_.companion != Companion::none) {
      set_.storage.write_pair[int(task_.companion)][dtype](from, to, companion, count_);
    } else if (is_8bit(task_.codings[k])) {
      const uint16_t* const random = task_.codings[k] == Coding::magnitude ? random_bits(k) : nullptr;
      for_blocks(k, to, from, [&](int i, uint8_t* codes, float* values, int64_t n, float& scale) {
        scale = set_.storage.write_8bit[i](values, codes, n, random == nullptr ? random : random + (values - from));
      });
    } else if (task_.codings[k] == Coding::stochastic) {
      set_.storage.write_stochastic(from, to, count_, random_bits(k));
    } else if (!is_in_place(k)) {
      set_.storage.write[dtype](from, to, count_);
    }
  }

  // Calls `work` for the part of each block of 8 bits.
  template <class Work>
  void for_blocks(int k, void* codes, float* values, Work work) {
    for (int64_t done = 0; done < count_;) {
      const int64_t block = task_.blocks.of(first_ + done);
      const int64_t n = std::min(task_.blocks.begin(block + 1) - first_, count_) - done;
      work(task_.codings[k] == Coding::sign, static_cast<uint8_t*>(codes) + done, values + done, n,
           task_.scales[k][block]);
      done += n;
    }
  }

  // 16 for each element.
  const uint16_t* random_bits(int k) {
    const RandomKey key = RandomKey::of(task_.seed, task_.next_step, task_.parameter, k);
    const int64_t place = task_.first_element + first_, counter = place / kRandomsOfCounter;
    const int64_t end = (place + count_ + kRandomsOfCounter - 1) / kRandomsOfCounter;
    set_.storage.random(key, uint64_t(counter), end - counter, random_);
    return random_ + place % kRandomsOfCounter;
  }

  // Towards the parameter as it is stored.
  void move_average(void* const* at, float* param) {
    const int k = rule_operands(), dtype = int(task_.dtypes[k]);
    if (!is_in_place(0)) {
      set_.storage.read[int(task_.dtypes[0])](at[0], buffers_[0], count_);
      param = buffers_[0];
    }
    const bool in_place = task_.dtypes[k] == DType::f32;
    float* const average = in_place ? static_cast<float*>(at[k]) : buffers_[k];
    if (task_.average_is_new) {
      if (in_place) return void(std::memcpy(average, param, size_t(count_) * sizeof(float)));
      return set_.storage.write[dtype](param, at[k], count_);
    }
    if (!in_place) set_.storage.read[dtype](at[k], average, count_);
    set_.storage.move_average(average, param, count_, task_.average_weight);
    if (!in_place) set_.storage.write[dtype](average, at[k], count_);
  }

  static constexpr int kMostCounters = 16;  // that a vector has, by which `random` writes

  const Task& task_;
  const InstructionSet& set_;
  int64_t first_ = 0, count_ = 0;
  alignas(64) float buffers_[kMaxOperands - 1][kElements];
  alignas(64) uint16_t random_[kElements + (kMostCounters + 1) * kRandomsOfCounter];
};

}  // namespace fusedoptim::cpu
