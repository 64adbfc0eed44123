#pragma once

#include "cpp/backend/cpu/kernels/linear_tiles.h"

// The inner loops of linear for weights of 8 or 4 bits. A group's sum of products is exact, so that
// its order is free.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// Inputs that are packed at once, or one group: a panel's stay in the L1 cache.
inline constexpr std::int64_t kPackedInputs = 256;
// Inputs of one row that are read at once: a block's sums stay in the L1 cache.
inline constexpr std::int64_t kStreamInputs = 4096;
// Blocks whose products with one row of x are summed together.
inline constexpr int kTileBlocks = 2;

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
      : scale_(load_n(block.scales + group * block.scale_stride, block.num_outputs)),
        has_zero_points_(block.zero_points != nullptr) {
    if (!has_zero_points_) return;
    zero_points_ =
        Bytes::load_small(block.zero_points + group * block.scale_stride, block.num_outputs);
  }

  bool has_zero_points() const { return has_zero_points_; }
  // A row's products, of which those by the offset are taken off, without those by zero points.
  [[gnu::always_inline]] Bytes::Sums add_zero_points(Bytes::Sums products,
                                                     std::int32_t x_sum) const {
    return Bytes::add(products,
                      Bytes::multiply(zero_points_, Bytes::splat_sum(x_sum / F::kOffset)));
  }
  [[gnu::always_inline]] Vec add(Vec sums, Bytes::Sums products, float x_scale) const {
    return fma(Bytes::to_float(products), scale_ * splat(x_scale), sums);
  }

 private:
  Vec scale_;
  Bytes::Sums zero_points_;
  bool has_zero_points_;
};

// Adds the products of one Vec of weights, or of its first `num_bytes`.
template <typename F, bool kWhole>
[[gnu::always_inline]] inline Bytes::Sums dot_vec(Bytes::Sums sums, const char* w,
                                                  const std::int8_t* x, int num_bytes) {
  const auto load_bytes = [num_bytes](const void* p) __attribute__((always_inline)) {
    return kWhole ? load(static_cast<const float*>(p)) : Bytes::load_n(p, num_bytes);
  };
  Vec units[F::kQuads];
  F::unpack(load_bytes(w), units);
#pragma GCC unroll 2
  for (int q = 0; q < F::kQuads; ++q) {
    sums = Bytes::dot(sums, units[q], load_bytes(x + q * F::kVecBytes));
  }
  return sums;
}

// One row of x, where a Vec of weights holds G groups, or a group's number of Vecs is whole and G
// is 1. Its sums with one output: for every four accumulators, G groups or one in each, Bytes::join
// of them, kLanes Vecs apart in `joined`. `ahead` is fetched meanwhile, as many bytes.
template <typename F, int G>
[[gnu::always_inline]] inline void stream_row(const char* w, const std::int8_t* x,
                                              std::int64_t num_inputs, std::int64_t group_size,
                                              const char* ahead, float* joined) {
  const std::int64_t group_vecs = G > 1 ? 1 : group_size / F::kVecInputs;
  std::int64_t vecs = num_inputs / F::kVecInputs;
  for (; vecs >= 4 * group_vecs; vecs -= 4 * group_vecs, joined += kLanes * kLanes) {
    Bytes::Sums sums[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      sums[i] = Bytes::splat_sum(0);
      for (std::int64_t v = 0; v < group_vecs; ++v) {
        prefetch_l2(ahead);
        sums[i] = dot_vec<F, true>(sums[i], w, x, F::kVecBytes);
        w += F::kVecBytes;
        x += F::kVecInputs;
        ahead += F::kVecBytes;
      }
    }
    store(joined, __builtin_bit_cast(Vec, Bytes::join(sums)));
  }
  std::int64_t rest = F::weight_bytes(vecs * F::kVecInputs + num_inputs % F::kVecInputs);
  if (rest == 0) return;
  Bytes::Sums sums[4];
  for (int i = 0; i < 4; ++i) {
    sums[i] = Bytes::splat_sum(0);
    for (std::int64_t v = 0; v < group_vecs && rest > 0; ++v, rest -= F::kVecBytes) {
      const int num_bytes = rest < F::kVecBytes ? static_cast<int>(rest) : F::kVecBytes;
      prefetch_l2(ahead);
      sums[i] = dot_vec<F, false>(sums[i], w, x, num_bytes);
      w += F::kVecBytes;
      x += F::kVecInputs;
      ahead += F::kVecBytes;
    }
  }
  store(joined, __builtin_bit_cast(Vec, Bytes::join(sums)));
}

// The groups from `group` on that `joined` has of kLanes outputs, added to the sums of those.
template <typename F, int G>
[[gnu::always_inline]] inline Vec add_joined(const Block<F>& block, const QuantizedRows& x,
                                             std::int64_t group, std::int64_t group_end,
                                             const float* joined, Vec sums) {
  constexpr int kGroupQuads = kLanes / 4 / G;
  Vec lanes[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) lanes[i] = load(joined + i * kLanes);
  transpose(lanes);
#pragma GCC unroll 16
  for (int i = 0; i < 4 * G; ++i, ++group) {
    if (group == group_end) break;
    const Vec* quads = lanes + i % G * kGroupQuads * 4 + i / G;
    const GroupAdder<F> adder(block, group);
    Bytes::Sums products = Bytes::splat_sum(x.sums[0][group]);
    if (adder.has_zero_points()) products = adder.add_zero_points(products, x.sums[0][group]);
#pragma GCC unroll 4
    for (int q = 0; q < kGroupQuads; ++q) {
      products = Bytes::add(products, __builtin_bit_cast(Bytes::Sums, quads[4 * q]));
    }
    sums = adder.add(sums, products, x.scales[0][group]);
  }
  return sums;
}

// One row of x: the sums of one kOutIn block, whose weights are read in the order of memory, an
// output after the other. `next` is the block that the caller wants next. `joined` takes
// kStreamInputs sums at most.
template <typename F, int G>
void stream_groups(const Block<F>& block, const Block<F>& next, std::int64_t in_features,
                   std::int64_t group_size, const std::int8_t* x, const QuantizedRows& rows,
                   float* joined, float* sums) {
  Vec total = zero();
  for (std::int64_t k = 0; k < in_features; k += kStreamInputs) {
    const std::int64_t rest = in_features - k;
    const std::int64_t count = rest < kStreamInputs ? rest : kStreamInputs;
    for (int i = 0; i < kLanes; ++i) {
      const int output = i < block.num_outputs ? i : block.num_outputs - 1;
      const std::int64_t at = output * block.stride + F::weight_bytes(k);
      stream_row<F, G>(block.data + at, x + k, count, group_size, next.data + at,
                       joined + i * kLanes);
    }
    const std::int64_t group_end = (k + count) / group_size;
    const float* from = joined;
    for (std::int64_t group = k / group_size; group < group_end; group += 4 * G) {
      total = add_joined<F, G>(block, rows, group, group_end, from, total);
      from += kLanes * kLanes;
    }
  }
  store(sums, total);
}

template <typename F>
void stream_quantized(const Block<F>& block, const Block<F>& next, std::int64_t in_features,
                      std::int64_t group_size, const std::int8_t* x, const QuantizedRows& rows,
                      float* joined, float* sums) {
  constexpr int kMostGroups = F::kVecInputs / 32;
  if constexpr (kMostGroups >= 4) {
    if (F::kVecInputs == 4 * group_size) {
      return stream_groups<F, 4>(block, next, in_features, group_size, x, rows, joined, sums);
    }
  }
  if constexpr (kMostGroups >= 2) {
    if (F::kVecInputs == 2 * group_size) {
      return stream_groups<F, 2>(block, next, in_features, group_size, x, rows, joined, sums);
    }
  }
  stream_groups<F, 1>(block, next, in_features, group_size, x, rows, joined, sums);
}

// S steps of kLanes outputs as units of those. Rows are read 16 S bytes at a time, so that many
// which fall into the same sets of the L1 cache are each read once.
template <typename F, int S>
[[gnu::always_inline]] inline float* pack_steps(const char* w, std::int64_t stride, float* panel) {
  Vec raw[S][4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) raw[s][v] = load_quads(w + v * stride + 16 * s, 4 * stride);
  }
#pragma GCC unroll 4
  for (int s = 0; s < S; ++s) {
    transpose_quads(raw[s]);
    Vec units[4][F::kQuads];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) F::unpack(raw[s][i], units[i]);
#pragma GCC unroll 2
    for (int q = 0; q < F::kQuads; ++q) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i, panel += kLanes) store(panel, units[i][q]);
    }
  }
  return panel;
}

// Several rows of x: puts the inputs [k, k_end) of a kOutIn block, whole steps, into a panel as
// units of kLanes outputs each. `scratch` takes those of a block that has fewer.
template <typename F>
void pack_quantized(const Block<F>& block, std::int64_t k, std::int64_t k_end, void* scratch,
                    float* panel) {
  const char* w = block.data + F::weight_bytes(k);
  std::int64_t stride = block.stride;
  if (block.num_outputs < kLanes) {
    const std::int64_t num_bytes = F::weight_bytes(k_end - k);
    auto* copy = static_cast<char*>(scratch);
    __builtin_memset(copy, 0, kLanes * num_bytes);
    for (int i = 0; i < block.num_outputs; ++i) {
      __builtin_memcpy(copy + i * num_bytes, w + i * stride, num_bytes);
    }
    w = copy;
    stride = num_bytes;
  }
  std::int64_t steps = (k_end - k) / F::kStepInputs;
  for (; steps >= 4; steps -= 4, w += 64) panel = pack_steps<F, 4>(w, stride, panel);
  for (; steps > 0; --steps, w += 16) panel = pack_steps<F, 1>(w, stride, panel);
}

// Adds the products of R rows of x and the inputs [k, k_end) of kTileBlocks blocks, whole groups
// packed into `panels`, to `sums` of earlier groups, the blocks' one behind the other.
template <typename F, int R>
void multiply_quantized(const Block<F>* const* blocks, const float* const* panels,
                        std::int64_t group_size, std::int64_t k, std::int64_t k_end,
                        const std::int8_t* const* x, const QuantizedRows& rows,
                        Prefetch<F>& prefetch, float* sums) {
  constexpr int V = kTileBlocks;
  const float* panel[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) panel[v] = panels[v];
  std::int64_t step = k / F::kStepInputs;
  for (std::int64_t group = k / group_size; group * group_size < k_end; ++group) {
    GroupAdder<F> adders[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) adders[v] = GroupAdder<F>(*blocks[v], group);
    Bytes::Sums acc[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[r][v] = Bytes::splat_sum(rows.sums[r][group]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      if (!adders[v].has_zero_points()) continue;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        acc[r][v] = adders[v].add_zero_points(acc[r][v], rows.sums[r][group]);
      }
    }
    for (std::int64_t i = 0; i < group_size; i += F::kStepInputs, ++step) {
      prefetch.step();
      const std::int64_t at = F::x_offset(step);
#pragma GCC unroll 8
      for (int u = 0; u < 4 * F::kQuads; ++u) {
        Vec w[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) w[v] = load(panel[v] + u * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const Vec unit = Bytes::splat_unit(x[r] + at + u / 4 * F::kVecBytes + u % 4 * 4);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) acc[r][v] = Bytes::dot(acc[r][v], w[v], unit);
        }
      }
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) panel[v] += 4 * F::kQuads * kLanes;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        float* to = sums + r * kPanelWidth + v * kLanes;
        const Vec before = group == 0 ? zero() : load(to);
        store(to, adders[v].add(before, acc[r][v], rows.scales[r][group]));
      }
    }
  }
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
