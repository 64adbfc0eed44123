#pragma once

#include "cpp/backend/cpu/kernels/linear_tiles.h"

// The inner loop of linear for weights of 8 or 4 bits. A group's sum of products is exact, so that
// its order is free; groups are added in float32 in their order.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// Inputs that are multiplied without a branch between: those of the smallest group.
inline constexpr int kStepInputs = 32;

// One tile of QuantizedX, of H rows.
template <int H>
struct QuantizedTile {
  const std::int8_t* values;  // [in_features / 4, H, 4]
  const float* scales;        // [in_features / group_size, H]
  const std::int32_t* sums;   // the same
};

// Sums of a group for R rows and V blocks before any product is added. Multiplied weights are too
// large by their offset and their zero point: the products by that times the sum of the inputs.
template <typename F, int R, int V>
[[gnu::always_inline]] inline void start_group(const Block<F>* const* blocks, std::int64_t group,
                                               const std::int32_t* x_sums,
                                               Bytes::Sums (&sums)[R][V]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      sums[r][v] = Bytes::splat_sum(F::kOffsetInProducts == 0 ? 0 : x_sums[r]);
    }
  }
  if (blocks[0]->zero_points == nullptr) return;
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const Bytes::Sums points = Bytes::load_small(blocks[v]->zero_points + group * kBlockOutputs);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Bytes::Sums x_sum = Bytes::splat_sum(x_sums[r] / F::kOffset);
      sums[r][v] = Bytes::add(sums[r][v], Bytes::multiply(points, x_sum));
    }
  }
}

// Adds the products of kStepInputs inputs of R rows and V blocks, from w and x on.
template <typename F, int R, int V, int H>
[[gnu::always_inline]] inline void multiply_step(const char* const (&w)[V], const std::int8_t* x,
                                                 Bytes::Sums (&sums)[R][V]) {
#pragma GCC unroll 8
  for (int line = 0; line < kStepInputs / F::kLineInputs; ++line) {
    Vec units[V][F::kUnits];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      F::unpack(load(reinterpret_cast<const float*>(w[v] + line * F::kLineBytes)), units[v]);
    }
#pragma GCC unroll 2
    for (int u = 0; u < F::kUnits; ++u) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec unit = Bytes::splat_unit(x + 4 * ((line * F::kUnits + u) * H + r));
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sums[r][v] = F::multiply_add(sums[r][v], units[v][u], unit);
      }
    }
  }
}

// Adds the products of R rows of a tile and the inputs [k, k_end) of V blocks, whole groups, to
// `sums` of earlier groups, the blocks' one behind the other. before(w) is called for the weights
// of every kStepInputs of a block.
template <typename F, int R, int V, int H, typename Before>
[[gnu::always_inline]] inline void multiply_quantized(const Block<F>* const* blocks,
                                                      std::int64_t group_size, std::int64_t k,
                                                      std::int64_t k_end,
                                                      const QuantizedTile<H>& tile, Before&& before,
                                                      float* sums) {
  constexpr int kStepBytes = kStepInputs / F::kLineInputs * F::kLineBytes;
  const char* w[V];
  Vec totals[R][V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    w[v] = blocks[v]->data + k / F::kLineInputs * F::kLineBytes;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      totals[r][v] = k == 0 ? zero() : load(sums + r * kPanelWidth + v * kLanes);
    }
  }
  const std::int8_t* x = tile.values + k * H;
  for (std::int64_t group = k / group_size; k < k_end; ++group) {
    Bytes::Sums products[R][V];
    start_group<F, R, V>(blocks, group, tile.sums + group * H, products);
    for (const std::int64_t end = k + group_size; k < end; k += kStepInputs) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) before(w[v]);
      multiply_step<F, R, V, H>(w, x, products);
      x += kStepInputs * H;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) w[v] += kStepBytes;
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Vec scale = load(blocks[v]->scales + group * kBlockOutputs);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        totals[r][v] = fma(Bytes::to_float(products[r][v]),
                           scale * splat(tile.scales[group * H + r]), totals[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(sums + r * kPanelWidth + v * kLanes, totals[r][v]);
  }
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
