#pragma once

#include "cpp/backend/cpu/kernels/linear_tiles.h"

// The inner loops of linear for weights of 8 or 4 bits. A group's sum of products is exact, so that
// its order is free.
namespace pagedcore::cpu::PAGEDCORE_ISA {

inline constexpr int kQuadBytes = 16;
// Quads of a packed block: those of a panel stay in the L2 cache.
inline constexpr std::int64_t kSegmentQuads = 128;
inline constexpr std::int64_t kCopyBytes = kSegmentQuads * 4 * kLanes * sizeof(float);
static_assert(kCopyBytes <= kLanes * kPanelRowBytes);

// Inputs of kLanes outputs, `stride` bytes between outputs, in whole steps.
struct BlockRows {
  const char* data;
  std::int64_t stride;
  std::int64_t num_steps;
};

// Inputs [k, k_end) of a kOutIn block: where they lie, or, where outputs or the end of a step are
// missing, copied to `scratch` with zeros in their place.
template <typename F>
BlockRows rows_of_block(const Block<F>& block, std::int64_t k, std::int64_t k_end, void* scratch) {
  const std::int64_t num_steps = (k_end - k + F::kStepInputs - 1) / F::kStepInputs;
  const char* data = block.data + F::weight_bytes(k);
  if (block.num_outputs == kLanes && num_steps * F::kStepInputs == k_end - k) {
    return {data, block.stride, num_steps};
  }
  auto* copy = static_cast<char*>(scratch);
  const std::int64_t stride = num_steps * kQuadBytes;
  __builtin_memset(copy, 0, kLanes * stride);
  for (int i = 0; i < block.num_outputs; ++i) {
    __builtin_memcpy(copy + i * stride, data + i * block.stride, F::weight_bytes(k_end - k));
  }
  return {copy, stride, num_steps};
}

// The sums of kLanes outputs, in their order, from the four of each.
[[gnu::always_inline]] inline Bytes::Sums join_quads(const Bytes::Sums (&sums)[4]) {
  Vec units[4];
  for (int i = 0; i < 4; ++i) units[i] = __builtin_bit_cast(Vec, sums[i]);
  transpose_quads(units);
  Bytes::Sums joined = __builtin_bit_cast(Bytes::Sums, units[0]);
  for (int i = 1; i < 4; ++i) {
    joined = Bytes::add(joined, __builtin_bit_cast(Bytes::Sums, units[i]));
  }
  return joined;
}

// Adds the products of V of the four Vecs of a block, from the outputs at `w` on, and R rows of x.
// `ahead` is fetched in the order of memory meanwhile; returns where that ends.
template <typename F, int R, int V>
[[gnu::always_inline]] inline const char* stream_rows(const char* w, const BlockRows& rows,
                                                      const typename F::Operand* const* x,
                                                      const char* ahead,
                                                      typename F::Sums (*sums)[4]) {
  typename F::Sums acc[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[r][v] = F::no_sums();
  }
  for (std::int64_t step = 0; step < rows.num_steps; ++step, w += kQuadBytes) {
    Vec quads[V][F::kQuads];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      F::load_step(w + v * rows.stride, 4 * rows.stride, quads[v]);
      prefetch_l2(ahead);
      ahead += 4 * kLanes;
    }
#pragma GCC unroll 2
    for (int q = 0; q < F::kQuads; ++q) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec operand = splat_quad(x[r] + (step * F::kQuads + q) * 4 * F::kUnitInputs);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          acc[r][v] = F::multiply_add(acc[r][v], quads[v][q], operand);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[r][v] = acc[r][v];
  }
  return ahead;
}

// The four sums of each output of a block over `rows`, for few rows of x: weights are used from
// registers.
template <typename F, int R>
[[gnu::always_inline]] inline const char* stream_segment(const BlockRows& rows,
                                                         const typename F::Operand* const* x,
                                                         const char* ahead,
                                                         typename F::Sums (*sums)[4]) {
  constexpr int V = 4 * R + 4 * F::kQuads < kNumRegisters   ? 4
                    : 2 * R + 2 * F::kQuads < kNumRegisters ? 2
                                                            : 1;
  for (int v = 0; v < 4; v += V) {
    typename F::Sums part[R][4];
    ahead = stream_rows<F, R, V>(rows.data + v * rows.stride, rows, x, ahead, part);
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < V; ++i) sums[r][v + i] = part[r][i];
    }
  }
  return ahead;
}

// What rows of a tile were rounded with: [groups of inputs] each.
struct QuantizedRows {
  const float* scales[8];
  const std::int32_t* sums[8];  // of the rounded inputs
};

// Adds the groups of one block to the sums of its outputs. load_step gives weights that are too
// large by their offset and their zero point: the products by that times the sum of the inputs.
template <typename F>
class GroupAdder {
 public:
  [[gnu::always_inline]] GroupAdder(const Block<F>& block, std::int64_t group) : group_(group) {
    offset_ = Bytes::splat_sum(-F::kOffset);
    if (block.zero_points != nullptr) {
      const std::int8_t* zero_points = block.zero_points + group * block.scale_stride;
      const Bytes::Sums minus_one = Bytes::splat_sum(-1);
      offset_ = Bytes::add(
          offset_, Bytes::multiply(Bytes::load_small(zero_points, block.num_outputs), minus_one));
    }
    scale_ = load_n(block.scales + group * block.scale_stride, block.num_outputs);
  }

  // Row r's sums so far and its products in this group.
  [[gnu::always_inline]] void add(const QuantizedRows& rows, int r, Bytes::Sums products,
                                  float* sums) const {
    const Bytes::Sums shift = Bytes::multiply(offset_, Bytes::splat_sum(rows.sums[r][group_]));
    const Vec before = group_ == 0 ? zero() : load(sums);
    store(sums, fma(Bytes::to_float(Bytes::add(products, shift)),
                    scale_ * splat(rows.scales[r][group_]), before));
  }

 private:
  std::int64_t group_;
  Bytes::Sums offset_;
  Vec scale_;
};

// stream_block for quantised weights.
template <typename F, int R>
void stream_quantized(const Block<F>& block, const Block<F>& next, std::int64_t in_features,
                      std::int64_t group_size, const std::int8_t* const* x,
                      const QuantizedRows& rows, void* scratch, float* sums) {
  const char* ahead = next.data;
  std::int64_t group = 0;
  for (std::int64_t k = 0; k < in_features; k += group_size, ++group) {
    const std::int8_t* x_rows[R];
    for (int r = 0; r < R; ++r) x_rows[r] = x[r] + k;
    Bytes::Sums quads[R][4];
    const BlockRows block_rows = rows_of_block(block, k, k + group_size, scratch);
    ahead = stream_segment<F, R>(block_rows, x_rows, ahead, quads);
    prefetch_l2(next.scales + group * next.scale_stride);
    const GroupAdder<F> adder(block, group);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) adder.add(rows, r, join_quads(quads[r]), sums + r * kPanelWidth);
  }
}

// pack_block for quantised weights: with units of kLanes outputs, since joining the quads of every
// group for every row would cost more than putting units together once.
template <typename F>
void pack_quantized(const Block<F>& block, std::int64_t k, std::int64_t k_end, void* scratch,
                    void* packed) {
  auto* panel = static_cast<float*>(packed);
  const BlockRows rows = rows_of_block(block, k, k_end, scratch);
  const char* w = rows.data;
  for (std::int64_t step = 0; step < rows.num_steps; ++step, w += kQuadBytes) {
    Vec quads[4][F::kQuads];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) F::load_step(w + v * rows.stride, 4 * rows.stride, quads[v]);
#pragma GCC unroll 2
    for (int q = 0; q < F::kQuads; ++q) {
      Vec units[4] = {quads[0][q], quads[1][q], quads[2][q], quads[3][q]};
      transpose_quads(units);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i, panel += kLanes) store(panel, units[i]);
    }
  }
}

// multiply_tile for quantised weights; the panel starts at input k, the start of a group.
template <typename F, int R>
void multiply_quantized(const void* packed, std::int64_t num_quads, const std::int8_t* const* x,
                        const Block<F>& block, const QuantizedRows& rows, std::int64_t k,
                        std::int64_t group_size, Prefetch<F>& prefetch, float* sums) {
  const auto* panel = static_cast<const float*>(packed);
  const std::int64_t group_quads = group_size / (4 * F::kUnitInputs);
  std::int64_t group = k / group_size;
  for (std::int64_t start = 0; start < num_quads; start += group_quads, ++group) {
    Bytes::Sums acc[R];
    for (int r = 0; r < R; ++r) acc[r] = F::no_sums();
    for (std::int64_t quad = start; quad < start + group_quads; ++quad, panel += 4 * kLanes) {
      prefetch.step();
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Vec w = load(panel + i * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const std::int8_t* unit = x[r] + (4 * quad + i) * F::kUnitInputs;
          acc[r] = F::multiply_add(acc[r], w, Bytes::splat_unit(unit));
        }
      }
    }
    const GroupAdder<F> adder(block, group);
    for (int r = 0; r < R; ++r) adder.add(rows, r, acc[r], sums + r * kPanelWidth);
  }
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
