#pragma once

#include "cpp/backend/cpu/kernels/linear_quantized.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

// stream_block for quantised weights, with the bits that multiply_quantized gives. kStep raw units
// are a group, or a part of one if kStep is kLanes.
template <typename F, int R, int kStep>
void stream_steps(const Block<F>& block, const Block<F>& next, std::int64_t in_features,
                  std::int64_t group_size, const std::int8_t* const* x, const QuantizedRows& rows,
                  float* sums) {
  constexpr int kUnitInputs = 4 * F::kInputsPerElement;
  constexpr int kUnitBytes = 4 * kLanes;  // of all outputs
  const void* outputs[kLanes];
  output_rows(block, outputs);
  const auto* ahead = reinterpret_cast<const char*>(next.data);
  Vec units[kLanes];
  Vec total[R];
  Bytes::Sums acc[R];
  for (int r = 0; r < R; ++r) {
    total[r] = zero();
    acc[r] = Bytes::splat_sum(0);
  }
  // Units [first, first + kStep) of the chunk at input k.
  const auto add_step = [&](int first, std::int64_t k) __attribute__((always_inline)) {
    const std::int64_t start = k + first * kUnitInputs;
    const std::int64_t group = start / group_size;
    if (kStep < kLanes || start % group_size == 0) {
      const Bytes::Sums offset = group_offsets(block, group);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        acc[r] = Bytes::multiply(offset, Bytes::splat_sum(-rows.sums[r][group]));
      }
    }
#pragma GCC unroll 16
    for (int u = 0; u < kStep; ++u) {
      if (u * kUnitBytes % 64 == 0) prefetch_l2(ahead + (first + u) * kUnitBytes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        acc[r] = F::add_raw(acc[r], units[first + u], x[r] + start + u * kUnitInputs);
      }
    }
    if (kStep < kLanes || (start + kStep * kUnitInputs) % group_size == 0) {
      const Vec scale = group_scales(block, group);
      prefetch_l2(next.scales + group * next.scale_stride);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        total[r] = fma(Bytes::to_float(acc[r]), scale * splat(rows.scales[r][group]), total[r]);
      }
    }
  };
  std::int64_t k = 0;
  for (; k + F::kChunk <= in_features; k += F::kChunk, ahead += kLanes * kUnitBytes) {
    load_transposed(outputs, k / F::kInputsPerElement, units);
#pragma GCC unroll 4
    for (int first = 0; first < kLanes; first += kStep) add_step(first, k);
  }
  if (k < in_features) {
    const int num_bytes = static_cast<int>(in_features - k) / F::kInputsPerElement;
    for (int i = 0; i < kLanes; ++i) {
      const auto* output = static_cast<const std::uint8_t*>(outputs[i]);
      units[i] = Bytes::load_n(output + k / F::kInputsPerElement, num_bytes);
    }
    transpose(units);
    ahead = reinterpret_cast<const char*>(next.data);
#pragma GCC unroll 4
    for (int first = 0; first < kLanes; first += kStep) {
      if (4 * first < num_bytes) add_step(first, k);
    }
  }
  for (int r = 0; r < R; ++r) store(sums + r * kPanelWidth, total[r]);
}

template <typename F, int R>
void stream_quantized(const Block<F>& block, const Block<F>& next, std::int64_t in_features,
                      std::int64_t group_size, const std::int8_t* const* x,
                      const QuantizedRows& rows, float* sums) {
  const std::int64_t group_units = group_size / (4 * F::kInputsPerElement);
  if constexpr (kLanes > 8) {
    if (group_units == 8) {
      return stream_steps<F, R, 8>(block, next, in_features, group_size, x, rows, sums);
    }
  }
  if constexpr (kLanes > 4 && F::kInputsPerElement > 1) {
    if (group_units == 4) {
      return stream_steps<F, R, 4>(block, next, in_features, group_size, x, rows, sums);
    }
  }
  stream_steps<F, R, kLanes>(block, next, in_features, group_size, x, rows, sums);
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
