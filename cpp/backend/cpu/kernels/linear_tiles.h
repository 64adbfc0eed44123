#pragma once

#include "cpp/backend/cpu/kernels/linear_formats.h"
#include "pagedcore/ops.h"

// The inner loops of linear. Whatever the number of rows, the four sums of an output run over the
// inputs of a segment in order, are added, and so are the segments: an output's bits depend on its
// weights and its row of x only.
namespace pagedcore::cpu::PAGEDCORE_ISA {

inline constexpr int kQuadBytes = 16;
// Quads of a segment: those of a panel stay in the L2 cache, those of x in L1.
inline constexpr std::int64_t kSegmentQuads = 128;
inline constexpr std::int64_t kBlockFloats = kSegmentQuads * 4 * kLanes;
// A panel is up to so many blocks of kLanes outputs.
inline constexpr int kPanelBlocks = 4;
inline constexpr int kPanelWidth = kPanelBlocks * kLanes;

// Inputs of a segment; a group where weights are quantised.
template <typename F>
constexpr std::int64_t segment_inputs(std::int64_t group_size) {
  return F::kQuantized ? group_size : kSegmentQuads / F::kQuads * F::kStepInputs;
}

// Bytes of `inputs` weights of one output.
template <typename F>
constexpr std::int64_t weight_bytes(std::int64_t inputs) {
  return inputs * kQuadBytes / F::kStepInputs;
}

// kLanes outputs of one weight matrix, the last `kLanes - num_outputs` of them absent.
template <typename F>
struct Block {
  const char* data;     // of the first output
  std::int64_t stride;  // bytes between outputs (kOutIn) or inputs (kInOut)
  WeightLayout layout;
  int num_outputs;
  const float* scales = nullptr;  // of quantised weights: [groups of inputs, num_outputs]
  const std::int8_t* zero_points = nullptr;  // the same
  std::int64_t scale_stride = 0;             // elements between groups
};

// Fetches the inputs [k, k_end) of some blocks into the L2 cache, a few lines at every step of a
// loop over something else, in the order of memory.
template <typename F>
class Prefetch {
 public:
  Prefetch() = default;
  Prefetch(const Block<F>* blocks, int num_blocks, std::int64_t k, std::int64_t k_end,
           std::int64_t num_steps)
      : blocks_(blocks), k_(k) {
    const bool by_input = blocks->layout == WeightLayout::kInOut;
    num_rows_ = by_input ? k_end - k : num_blocks * kLanes;
    row_bytes_ =
        by_input ? num_blocks * kLanes * sizeof(typename F::Weight) : weight_bytes<F>(k_end - k);
    const std::int64_t num_lines = num_rows_ * (row_bytes_ / 64 + 1);
    lines_a_step_ = static_cast<int>((num_lines + num_steps - 1) / num_steps);
  }

  void step() {
    for (int i = 0; i < lines_a_step_; ++i, next_ += 64) {
      if (next_ >= end_ && !start_row()) return;
      prefetch_l2(next_);
    }
  }

 private:
  bool start_row() {
    if (row_ == num_rows_) {
      lines_a_step_ = 0;
      return false;
    }
    const bool by_input = blocks_->layout == WeightLayout::kInOut;
    const Block<F>& block = by_input ? blocks_[0] : blocks_[row_ / kLanes];
    next_ = block.data + (by_input ? (k_ + row_) * block.stride
                                   : row_ % kLanes * block.stride + weight_bytes<F>(k_));
    end_ = next_ + row_bytes_;
    ++row_;
    return true;
  }

  const Block<F>* blocks_ = nullptr;
  std::int64_t k_ = 0;
  std::int64_t num_rows_ = 0;
  std::int64_t row_bytes_ = 0;
  std::int64_t row_ = 0;
  const char* next_ = nullptr;
  const char* end_ = nullptr;
  int lines_a_step_ = 0;
};

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
  const char* data = block.data + weight_bytes<F>(k);
  if (block.num_outputs == kLanes && num_steps * F::kStepInputs == k_end - k) {
    return {data, block.stride, num_steps};
  }
  auto* copy = static_cast<char*>(scratch);
  const std::int64_t stride = num_steps * kQuadBytes;
  __builtin_memset(copy, 0, kLanes * stride);
  for (int i = 0; i < block.num_outputs; ++i) {
    __builtin_memcpy(copy + i * stride, data + i * block.stride, weight_bytes<F>(k_end - k));
  }
  return {copy, stride, num_steps};
}

// The sums of kLanes outputs, in their order, from the four of each.
[[gnu::always_inline]] inline Vec join_quads(const Vec (&sums)[4]) {
  Vec units[4] = {sums[0], sums[1], sums[2], sums[3]};
  transpose_quads(units);
  return (units[0] + units[1]) + (units[2] + units[3]);
}
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

// Few rows: the sums of one kOutIn block for R rows of x, its weights read once. x[r] points to
// in_features inputs padded with zeros to whole steps. `next` is the block that the caller wants
// next; it is fetched in the order of memory while this one is worked on, since kLanes streams of
// one cache line each defeat the hardware's prefetching.
template <typename F, int R>
void stream_block(const Block<F>& block, const Block<F>& next, std::int64_t in_features,
                  const typename F::Operand* const* x, void* scratch, float* sums) {
  const char* ahead = next.data;
  for (std::int64_t k = 0; k < in_features; k += segment_inputs<F>(0)) {
    const std::int64_t rest = in_features - k;
    const std::int64_t k_end = k + (rest < segment_inputs<F>(0) ? rest : segment_inputs<F>(0));
    const typename F::Operand* x_rows[R];
    for (int r = 0; r < R; ++r) x_rows[r] = x[r] + k;
    typename F::Sums quads[R][4];
    ahead = stream_segment<F, R>(rows_of_block(block, k, k_end, scratch), x_rows, ahead, quads);
    for (int r = 0; r < R; ++r) {
      const Vec sum = join_quads(quads[r]);
      float* to = sums + r * kPanelWidth;
      store(to, k == 0 ? sum : load(to) + sum);
    }
  }
}

// Many rows: writes the inputs [k, k_end) of one block into a panel, whole steps of them. Returns
// the number of quads.
template <typename F>
std::int64_t pack_block(const Block<F>& block, std::int64_t k, std::int64_t k_end, void* scratch,
                        float* panel) {
  if (block.layout == WeightLayout::kOutIn) {
    const BlockRows rows = rows_of_block(block, k, k_end, scratch);
    const char* w = rows.data;
    for (std::int64_t step = 0; step < rows.num_steps; ++step, w += kQuadBytes) {
      Vec quads[4][F::kQuads];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) F::load_step(w + v * rows.stride, 4 * rows.stride, quads[v]);
#pragma GCC unroll 2
      for (int q = 0; q < F::kQuads; ++q) {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v, panel += kLanes) store(panel, quads[v][q]);
      }
    }
    return rows.num_steps * F::kQuads;
  }
  const std::int64_t num_steps = (k_end - k + F::kStepInputs - 1) / F::kStepInputs;
  const std::int64_t padded_end = k + num_steps * F::kStepInputs;
  while (k < padded_end) {
    Vec units[4];
    for (int i = 0; i < 4; ++i, k += F::kUnitInputs) {
      const auto* row = reinterpret_cast<const typename F::Weight*>(block.data + k * block.stride);
      const std::int64_t stride = block.stride / sizeof(typename F::Weight);
      units[i] = k < k_end ? F::load_outputs(row, stride, k_end - k, block.num_outputs) : zero();
    }
    transpose_quads(units);
    for (int i = 0; i < 4; ++i, panel += kLanes) store(panel, units[i]);
  }
  return num_steps * F::kQuads;
}

// Adds a packed block of a segment, for R rows of x, to the sums of earlier segments (or to
// nothing, if this is the first).
template <typename F, int R>
void multiply_tile(const float* panel, std::int64_t num_quads, const typename F::Operand* const* x,
                   bool first, Prefetch<F>& prefetch, float* sums) {
  Vec acc[R][4];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) acc[r][v] = zero();
  }
  for (std::int64_t quad = 0; quad < num_quads; ++quad, panel += 4 * kLanes) {
    prefetch.step();
    Vec w[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) w[v] = load(panel + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec operand = splat_quad(x[r] + quad * 4 * F::kUnitInputs);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) acc[r][v] = F::multiply_add(acc[r][v], w[v], operand);
    }
  }
  for (int r = 0; r < R; ++r) {
    const Vec sum = join_quads(acc[r]);
    float* to = sums + r * kPanelWidth;
    store(to, first ? sum : load(to) + sum);
  }
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
