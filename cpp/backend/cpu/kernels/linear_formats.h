#pragma once

#include PAGEDCORE_SIMD_HEADER

#include <cstdint>

namespace pagedcore::cpu::PAGEDCORE_ISA {

// How one dtype of weights meets x. The sum of an output runs over units of kStep consecutive
// inputs, one after the other; a Vec holds one unit of kLanes outputs. load_units reads kChunk
// inputs at k of kLanes outputs and turns them into that; load_chunk_n reads the first n inputs of
// one output, the rest 0.

// Weights widened to float32, one fused multiply-add an input.
template <typename T>
struct FmaFormat {
  using Weight = T;
  using Operand = float;
  static constexpr bool kQuantized = false;
  static constexpr int kStep = 1;
  static constexpr int kInputsPerElement = 1;
  static constexpr int kChunk = kLanes;  // inputs in a vector of units of one output

  [[gnu::always_inline]] static void load_units(const void* const (&outputs)[kLanes],
                                                std::int64_t k, Vec (&units)[kLanes]) {
    if constexpr (sizeof(T) == sizeof(float)) {
      load_transposed(outputs, k * static_cast<std::int64_t>(sizeof(float)), units);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) units[i] = load(static_cast<const T*>(outputs[i]) + k);
      transpose(units);
    }
  }
  static Vec load_chunk_n(const Weight* w, int n) { return load_n(w, n); }
  static Vec splat_unit(const Operand* x) { return splat(*x); }
  static Vec multiply_add(Vec acc, Vec w, Vec x) { return fma(w, x, acc); }
  // One unit of the first n outputs where outputs lie side by side; inputs are stride apart.
  static Vec load_outputs(const Weight* w, std::int64_t, int, int n) { return load_n(w, n); }
};

// Pairs of bfloat16, multiplied and summed by the instruction that Dot wraps.
template <typename Dot>
struct PairDotFormat {
  using Weight = BFloat16;
  using Operand = BFloat16;
  static constexpr bool kQuantized = false;
  static constexpr int kStep = 2;
  static constexpr int kInputsPerElement = 1;
  static constexpr int kChunk = 2 * kLanes;

  [[gnu::always_inline]] static void load_units(const void* const (&outputs)[kLanes],
                                                std::int64_t k, Vec (&units)[kLanes]) {
    load_transposed(outputs, k * static_cast<std::int64_t>(sizeof(Weight)), units);
  }
  static Vec load_chunk_n(const Weight* w, int n) { return Dot::load_pairs_n(w, n); }
  static Vec splat_unit(const Operand* x) { return Dot::splat_pair(x); }
  static Vec multiply_add(Vec acc, Vec w, Vec x) { return Dot::dot_pairs(acc, w, x); }
  static Vec load_outputs(const Weight* w, std::int64_t stride, int num_inputs, int n) {
    return Dot::zip_pairs(w, num_inputs > 1 ? w + stride : nullptr, n);
  }
};

template <bool kHasDot>
struct Bf16FormatOf {
  using Type = FmaFormat<BFloat16>;
};
template <>
struct Bf16FormatOf<true> {
  using Type = PairDotFormat<Bf16Dot>;
};
using Bf16Format = Bf16FormatOf<kHasBf16Dot>::Type;

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
