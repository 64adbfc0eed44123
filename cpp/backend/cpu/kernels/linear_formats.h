#pragma once

#include PAGEDCORE_SIMD_HEADER
#include PAGEDCORE_BYTES_HEADER

#include <cstdint>

#include "cpp/backend/cpu/kernels/quantize_rows.h"
#include "pagedcore/dtype.h"

// How one dtype of weights meets x. Of floats, a Vec holds kVecInputs inputs of one output, those
// of weights and of x side by side as they lie in memory, so that an output has kLanes sums, which
// are added at the end of a segment.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// Weights widened to float32, one fused multiply-add an input.
template <typename T>
struct FmaFormat {
  using Weight = T;
  using Operand = float;
  using Sums = Vec;
  static constexpr bool kQuantized = false;
  static constexpr bool kInPlace = sizeof(T) == sizeof(float);  // weights are operands
  static constexpr int kUnitInputs = 1;
  static constexpr int kVecInputs = kLanes;

  static constexpr std::int64_t weight_bytes(std::int64_t inputs) { return inputs * sizeof(T); }
  template <typename U>
  static Vec load_inputs(const U* p) {
    return load(p);
  }
  // The first n, the rest 0.
  template <typename U>
  static Vec load_inputs(const U* p, int n) {
    return load_n(p, n);
  }
  static Sums multiply_add(Sums sums, Vec w, Vec x) { return fma(w, x, sums); }
  // One unit of the first n outputs where outputs lie side by side; inputs are stride apart.
  static Vec load_outputs(const Weight* w, std::int64_t, std::int64_t, int n) {
    return load_n(w, n);
  }
};

// Pairs of bfloat16, multiplied and summed by the instruction that Dot wraps.
template <typename Dot>
struct PairDotFormat {
  using Weight = BFloat16;
  using Operand = BFloat16;
  using Sums = Vec;
  static constexpr bool kQuantized = false;
  static constexpr bool kInPlace = true;
  static constexpr int kUnitInputs = 2;
  static constexpr int kVecInputs = 2 * kLanes;

  static constexpr std::int64_t weight_bytes(std::int64_t inputs) { return 2 * inputs; }
  static Vec load_inputs(const BFloat16* p) { return Dot::load_pairs(p); }
  static Vec load_inputs(const BFloat16* p, int n) { return Dot::load_pairs_n(p, n); }
  static Sums multiply_add(Sums sums, Vec w, Vec x) { return Dot::dot_pairs(sums, w, x); }
  static Vec load_outputs(const Weight* w, std::int64_t stride, std::int64_t num_inputs, int n) {
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

// Weights of 8 or 4 bits, where they lie as LinearWeight says: a line of 64 bytes has four bytes of
// each of kBlockOutputs outputs, so that a Vec holds those of kLanes outputs. x is rounded to
// signed bytes with one scale for every group of inputs, so that a group's sum of products is an
// exact integer; groups are added in float32 in their order. An output is the same for every
// instruction set but for the last bits of that addition.
template <int kBits>
struct QuantizedFormat {
  using Weight = std::uint8_t;
  using Operand = std::int8_t;
  using Sums = Bytes::Sums;
  static constexpr bool kQuantized = true;
  static constexpr int kUnits = 8 / kBits;  // of four inputs, in the four bytes of an output
  static constexpr int kLineBytes = 4 * kBlockOutputs;
  static constexpr int kLineInputs = 4 * kUnits;
  static constexpr int kOffset = weight_offset(kBits == 8 ? DType::kInt8 : DType::kInt4);
  // What weights are too large by when they are multiplied: kOffset or nothing.
  static constexpr int kOffsetInProducts = kBits == 8 ? kOffset - Bytes::kDotOffset : kOffset;

  static constexpr std::int64_t weight_bytes(std::int64_t inputs) { return inputs * kBits / 8; }
  // Units of unsigned bytes.
  static void unpack(Vec raw, Vec (&units)[kUnits]) {
    if constexpr (kBits == 8) {
      units[0] = raw;
    } else {
      units[0] = Bytes::low_nibbles(raw);
      units[1] = Bytes::high_nibbles(raw);
    }
  }
  static Sums multiply_add(Sums sums, Vec unit, Vec x) {
    return kBits == 8 ? Bytes::dot(sums, unit, x) : Bytes::dot_nibbles(sums, unit, x);
  }
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
