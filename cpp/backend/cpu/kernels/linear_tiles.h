#pragma once

#include "cpp/backend/cpu/kernels/linear_formats.h"
#include "pagedcore/ops.h"

// The inner loops of linear. All of them add the units of an output one after the other to one
// accumulator that starts at zero, so an output's bits depend on its weights and its row of x only.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// A panel is up to kPanelVectors blocks of kLanes outputs that are computed together.
inline constexpr int kPanelVectors = kNumRegisters >= 32 ? 4 : 2;
inline constexpr int kPanelWidth = kPanelVectors * kLanes;

// kLanes outputs of one weight matrix, the last `kLanes - num_outputs` of them absent.
template <typename F>
struct Block {
  const typename F::Weight* data;  // of the first output
  std::int64_t stride;             // elements between outputs (kOutIn) or inputs (kInOut)
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
      : blocks_(blocks), k_(k / F::kInputsPerElement) {
    const bool by_input = blocks->layout == WeightLayout::kInOut;
    num_rows_ = by_input ? k_end - k : num_blocks * kLanes;
    const std::int64_t num_inputs = (k_end - k) / F::kInputsPerElement;
    row_bytes_ = (by_input ? num_blocks * kLanes : num_inputs) * sizeof(typename F::Weight);
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
    const auto* row =
        by_input ? blocks_->data + (k_ + row_) * blocks_->stride
                 : blocks_[row_ / kLanes].data + row_ % kLanes * blocks_[row_ / kLanes].stride + k_;
    next_ = reinterpret_cast<const char*>(row);
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

// The units of a last chunk of fewer inputs.
template <typename F>
[[gnu::always_inline]] inline void load_units_n(const void* const (&outputs)[kLanes],
                                                std::int64_t k, int num_inputs,
                                                Vec (&units)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    const auto* output = static_cast<const typename F::Weight*>(outputs[i]);
    units[i] = F::load_chunk_n(output + k, num_inputs);
  }
  transpose(units);
}

// Where each output's inputs start; absent outputs read the last present one.
template <typename F>
[[gnu::always_inline]] inline void output_rows(const Block<F>& block,
                                               const void* (&outputs)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    outputs[i] = block.data + (i < block.num_outputs ? i : block.num_outputs - 1) * block.stride;
  }
}

// Few rows: the sums of one block for R rows of x, its weights read once and used from registers.
// The block is kOutIn. x[r] points to in_features inputs padded with zero to kStep. `next` starts
// the block that the caller wants next; it is fetched in the order of memory while this one is
// worked on, since kLanes streams of one cache line each defeat the hardware's prefetching.
template <typename F, int R>
void stream_block(const Block<F>& block, const char* next, std::int64_t in_features,
                  const typename F::Operand* const* x, float* sums) {
  constexpr int kUnitBytes = kLanes * F::kStep * static_cast<int>(sizeof(typename F::Weight));
  const void* outputs[kLanes];
  output_rows(block, outputs);
  Vec acc[R];
  for (int r = 0; r < R; ++r) acc[r] = zero();
  Vec units[kLanes];
  const auto add_unit = [&](std::int64_t k, int u) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      acc[r] = F::multiply_add(acc[r], units[u], F::splat_unit(x[r] + k + u * F::kStep));
    }
  };
  std::int64_t k = 0;
  for (; k + F::kChunk <= in_features; k += F::kChunk, next += kLanes * kUnitBytes) {
    F::load_units(outputs, k, units);
#pragma GCC unroll 16
    for (int u = 0; u < kLanes; ++u) {
      if ((u * kUnitBytes) % 64 == 0) prefetch_l2(next + u * kUnitBytes);
      add_unit(k, u);
    }
  }
  if (k < in_features) {
    const int rest = static_cast<int>(in_features - k);
    load_units_n<F>(outputs, k, rest, units);
    for (int u = 0; u * F::kStep < rest; ++u) add_unit(k, u);
  }
  for (int r = 0; r < R; ++r) store(sums + r * kPanelWidth, acc[r]);
}

// Many rows: writes the units of inputs [k, k_end) of one block into a panel whose units are
// unit_stride floats apart.
template <typename F>
void pack_block(const Block<F>& block, std::int64_t k, std::int64_t k_end, std::int64_t unit_stride,
                float* panel) {
  if (block.layout == WeightLayout::kInOut) {
    for (; k < k_end; k += F::kStep, panel += unit_stride) {
      const auto num_inputs = static_cast<int>(k_end - k);
      store(panel, F::load_outputs(block.data + k * block.stride, block.stride, num_inputs,
                                   block.num_outputs));
    }
    return;
  }
  const void* outputs[kLanes];
  output_rows(block, outputs);
  Vec units[kLanes];
  for (; k + F::kChunk <= k_end; k += F::kChunk) {
    F::load_units(outputs, k, units);
#pragma GCC unroll 16
    for (int u = 0; u < kLanes; ++u) store(panel + u * unit_stride, units[u]);
    panel += kLanes * unit_stride;
  }
  if (k < k_end) {
    const int rest = static_cast<int>(k_end - k);
    load_units_n<F>(outputs, k, rest, units);
    for (int u = 0; u * F::kStep < rest; ++u) store(panel + u * unit_stride, units[u]);
  }
}

// Adds num_units units of a packed panel of V blocks, for R rows of x, to the sums of earlier units
// (or to zero, if these are the first).
template <typename F, int R, int V>
void multiply_tile(const float* panel, std::int64_t num_units, const typename F::Operand* const* x,
                   bool first, Prefetch<F>& prefetch, float* sums) {
  Vec acc[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      acc[r][v] = first ? zero() : load(sums + r * kPanelWidth + v * kLanes);
    }
  }
  const auto add_unit = [&](std::int64_t unit) __attribute__((always_inline)) {
    Vec w[V];
    for (int v = 0; v < V; ++v) w[v] = load(panel + (unit * V + v) * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec operand = F::splat_unit(x[r] + unit * F::kStep);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[r][v] = F::multiply_add(acc[r][v], w[v], operand);
    }
  };
  std::int64_t unit = 0;
  for (; unit + 4 <= num_units; unit += 4) {
    prefetch.step();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) add_unit(unit + i);
  }
  for (; unit < num_units; ++unit) add_unit(unit);
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) store(sums + r * kPanelWidth + v * kLanes, acc[r][v]);
  }
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
