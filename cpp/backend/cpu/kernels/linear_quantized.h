#pragma once

#include "cpp/backend/cpu/kernels/linear_tiles.h"

// The inner loop of linear for weights of 8 or 4 bits. A group's sum of products is exact, so that
// its order is free.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// What rows of a tile were rounded with: [groups of inputs] each.
struct QuantizedRows {
  const float* scales[8];
  const std::int32_t* sums[8];  // of the rounded inputs, times minus the offset of the weights
};

// Adds one group of a block to the sums of its outputs. Unpacked weights are too large by their
// offset and their zero point: the products by that times the sum of the inputs.
template <typename F>
class GroupAdder {
 public:
  GroupAdder() = default;
  [[gnu::always_inline]] GroupAdder(const Block<F>& block, std::int64_t group)
      : scale_(load(block.scales + group * kBlockOutputs)),
        has_zero_points_(block.zero_points != nullptr) {
    if (!has_zero_points_) return;
    zero_points_ = Bytes::load_small(block.zero_points + group * kBlockOutputs);
  }

  // A row's products before any is added: those by the offset and by zero points, taken off.
  [[gnu::always_inline]] Bytes::Sums start(std::int32_t x_sum) const {
    const Bytes::Sums offset = Bytes::splat_sum(x_sum);
    if (!has_zero_points_) return offset;
    return Bytes::add(offset, Bytes::multiply(zero_points_, Bytes::splat_sum(x_sum / F::kOffset)));
  }
  [[gnu::always_inline]] Vec add(Vec sums, Bytes::Sums products, float x_scale) const {
    return fma(Bytes::to_float(products), scale_ * splat(x_scale), sums);
  }

 private:
  Vec scale_;
  Bytes::Sums zero_points_;
  bool has_zero_points_;
};

// Adds the products of R rows of x and the inputs [k, k_end) of V blocks, whole groups, to `sums`
// of earlier groups, the blocks' one behind the other. before(line) is called for each line.
template <typename F, int R, int V, typename Before>
[[gnu::always_inline]] inline void multiply_quantized(
    const Block<F>* const* blocks, std::int64_t group_size, std::int64_t k, std::int64_t k_end,
    const std::int8_t* const* x, const QuantizedRows& rows, Before&& before, float* sums) {
  constexpr int kStepLines = 32 / F::kLineInputs;  // of the smallest group
  std::int64_t at = k / F::kLineInputs * F::kLineBytes;
  for (std::int64_t group = k / group_size; k < k_end; ++group) {
    GroupAdder<F> adders[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) adders[v] = GroupAdder<F>(*blocks[v], group);
    Bytes::Sums acc[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[r][v] = adders[v].start(rows.sums[r][group]);
    }
    for (const std::int64_t end = k + group_size; k < end;) {
#pragma GCC unroll 8
      for (int line = 0; line < kStepLines; ++line, k += F::kLineInputs, at += F::kLineBytes) {
        Vec units[V][F::kUnits];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          const char* w = blocks[v]->data + at;
          before(w);
          F::unpack(load(reinterpret_cast<const float*>(w)), units[v]);
        }
#pragma GCC unroll 2
        for (int u = 0; u < F::kUnits; ++u) {
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            const Vec unit = Bytes::splat_unit(x[r] + k + 4 * u);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) acc[r][v] = Bytes::dot(acc[r][v], units[v][u], unit);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        float* to = sums + r * kPanelWidth + v * kLanes;
        const Vec earlier = group == 0 ? zero() : load(to);
        store(to, adders[v].add(earlier, acc[r][v], rows.scales[r][group]));
      }
    }
  }
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
