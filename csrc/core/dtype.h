// Storage types and the arithmetic type that each of them is computed in.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fusedoptim {

// Storage only: no arithmetic is ever done on these two.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

enum class DType : uint8_t { f64, f32, bf16, f16, u8, i16 };
constexpr int kDTypes = 4;        // those of numbers, which come first
constexpr int kStoredDTypes = 6;  // and of codes of 8 bits, and remainders

constexpr bool is_number(DType dtype) { return int(dtype) < kDTypes; }

constexpr size_t size_of(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : dtype == DType::u8 ? 1 : 2;
}

// As torch calls it.
constexpr const char* torch_name(DType dtype) {
  constexpr const char* kNames[] = {"float64", "float32", "bfloat16", "float16", "uint8", "int16"};
  return kNames[int(dtype)];
}

template <DType dtype>
struct StorageOf;
template <>
struct StorageOf<DType::f64> {
  using type = double;
};
template <>
struct StorageOf<DType::f32> {
  using type = float;
};
template <>
struct StorageOf<DType::bf16> {
  using type = BFloat16;
};
template <>
struct StorageOf<DType::f16> {
  using type = Half;
};
template <DType dtype>
using Storage = typename StorageOf<dtype>::type;

// float for float, bf16 and fp16 storage; double for double storage.
template <class S>
struct ArithmeticOf {
  using type = float;
};
template <>
struct ArithmeticOf<double> {
  using type = double;
};
template <class S>
using Arithmetic = typename ArithmeticOf<S>::type;

}  // namespace fusedoptim
