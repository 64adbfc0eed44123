#pragma once

#include PAGEDCORE_BYTES_HEADER

#include "cpp/backend/cpu/kernels/linear_tiles.h"

// Weights of 8 or 4 bits. x is rounded to signed bytes with one scale for every group of inputs, so
// that a group's sum of products is an exact integer; groups are added in float32 in their order.
// An output is the same for every instruction set but for the last bits of that addition.
namespace pagedcore::cpu::PAGEDCORE_ISA {

template <int kBits>
struct QuantizedFormat {
  using Weight = std::uint8_t;
  using Operand = std::int8_t;
  static constexpr bool kQuantized = true;
  static constexpr int kStep = 4;
  static constexpr int kInputsPerElement = 8 / kBits;
  static constexpr int kChunk = 4 * kLanes * kInputsPerElement;
  static constexpr int kOffset = kBits == 8 ? 128 : 8;  // of an unsigned weight in a panel

  // Adds the products of a raw unit, straight from memory, and the inputs at x.
  static Bytes::Sums add_raw(Bytes::Sums sums, Vec raw, const std::int8_t* x) {
    if constexpr (kBits == 8) {
      return Bytes::dot(sums, Bytes::flip_signs(raw), Bytes::splat_unit(x));
    } else {
      sums = Bytes::dot(sums, Bytes::low_nibbles(raw), Bytes::splat_unit(x));
      return Bytes::dot(sums, Bytes::high_nibbles(raw), Bytes::splat_unit(x + 4));
    }
  }

  // Units of a panel from raw ones, as unsigned bytes: one, or for 4 bits two, of even and then of
  // odd inputs.
  static void store_units(Vec raw, float* panel, std::int64_t unit_stride) {
    if constexpr (kBits == 8) {
      store(panel, Bytes::flip_signs(raw));
    } else {
      store(panel, Bytes::low_nibbles(raw));
      store(panel + unit_stride, Bytes::high_nibbles(raw));
    }
  }
};

// What rows of a tile were rounded with: [groups of inputs] each.
struct QuantizedRows {
  const float* scales[8];
  const std::int32_t* sums[8];  // of the rounded inputs
};

// What a group's sums start from: the offsets of its weights times -(sum of its inputs) are added
// by the caller.
template <typename F>
Bytes::Sums group_offsets(const Block<F>& block, std::int64_t group) {
  const Bytes::Sums offset = Bytes::splat_sum(F::kOffset);
  if (block.zero_points == nullptr) return offset;
  const std::int8_t* zero_points = block.zero_points + group * block.scale_stride;
  return Bytes::add(offset, Bytes::load_small(zero_points, block.num_outputs));
}

template <typename F>
Vec group_scales(const Block<F>& block, std::int64_t group) {
  return load_n(block.scales + group * block.scale_stride, block.num_outputs);
}

// pack_block for quantised weights. REQUIRES: k is a multiple of kChunk, k_end of 32.
template <typename F>
void pack_quantized(const Block<F>& block, std::int64_t k, std::int64_t k_end,
                    std::int64_t unit_stride, float* panel) {
  constexpr int kUnitsOfRaw = F::kInputsPerElement;  // panel units that a raw unit becomes
  const void* outputs[kLanes];
  output_rows(block, outputs);
  Vec units[kLanes];
  for (; k + F::kChunk <= k_end; k += F::kChunk) {
    load_transposed(outputs, k / F::kInputsPerElement, units);
#pragma GCC unroll 16
    for (int u = 0; u < kLanes; ++u, panel += kUnitsOfRaw * unit_stride) {
      F::store_units(units[u], panel, unit_stride);
    }
  }
  if (k == k_end) return;
  const int num_bytes = static_cast<int>(k_end - k) / F::kInputsPerElement;
  for (int i = 0; i < kLanes; ++i) {
    units[i] = Bytes::load_n(
        static_cast<const std::uint8_t*>(outputs[i]) + k / F::kInputsPerElement, num_bytes);
  }
  transpose(units);
  for (int u = 0; 4 * u < num_bytes; ++u, panel += kUnitsOfRaw * unit_stride) {
    F::store_units(units[u], panel, unit_stride);
  }
}

// multiply_tile for quantised weights; the panel starts at input k, the start of a group.
template <typename F, int R, int V>
void multiply_quantized(const float* panel, std::int64_t num_units, const std::int8_t* const* x,
                        const Block<F>* blocks, const QuantizedRows& rows, std::int64_t k,
                        std::int64_t group_size, Prefetch<F>& prefetch, float* sums) {
  const std::int64_t group_units = group_size / F::kStep;
  std::int64_t group = k / group_size;
  for (std::int64_t start = 0; start < num_units; start += group_units, ++group) {
    Bytes::Sums acc[R][V];
    for (int v = 0; v < V; ++v) {
      const Bytes::Sums offset = group_offsets(blocks[v], group);
      for (int r = 0; r < R; ++r) {
        acc[r][v] = Bytes::multiply(offset, Bytes::splat_sum(-rows.sums[r][group]));
      }
    }
    for (std::int64_t unit = start; unit < start + group_units; unit += 4) {
      prefetch.step();
#pragma GCC unroll 4
      for (std::int64_t i = unit; i < unit + 4; ++i) {
        Vec w[V];
        for (int v = 0; v < V; ++v) w[v] = load(panel + (i * V + v) * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const Vec operand = Bytes::splat_unit(x[r] + i * F::kStep);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) acc[r][v] = Bytes::dot(acc[r][v], w[v], operand);
        }
      }
    }
    for (int v = 0; v < V; ++v) {
      const Vec scale = group_scales(blocks[v], group);
      for (int r = 0; r < R; ++r) {
        float* sum = sums + r * kPanelWidth + v * kLanes;
        const Vec before = group == 0 ? zero() : load(sum);
        store(sum, fma(Bytes::to_float(acc[r][v]), scale * splat(rows.scales[r][group]), before));
      }
    }
  }
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
