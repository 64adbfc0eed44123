#pragma once

#include "cpp/backend/cpu/kernels/linear_quantized.h"
#include "cpp/backend/cpu/kernels/linear_share.h"

// A share of a linear op with weights of 8 or 4 bits.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// Inputs whose weights all rows meet before the next ones, or one group: a panel's stay in L1.
inline constexpr std::int64_t kPanelInputs = 256;
// Inputs that are fetched at once, while those before are multiplied: a panel's stay in L2.
inline constexpr std::int64_t kFetchedInputs = 2048;
// Blocks side by side in a line: one row of x meets them together.
inline constexpr int kLineBlocks = kBlockOutputs / kLanes;

template <typename F>
class QuantizedShare : public LinearShare<F> {
  using Base = LinearShare<F>;
  using Base::finish, Base::params_, Base::row_, Base::row_end_, Base::sums_, Base::task_;

 public:
  static constexpr int kRowStep = kQuantizedTileRows;

  using Base::Base;

  // More rows than one read a line's blocks one after the other.
  bool streams() const {
    return params_.num_rows == 1 || (kLineBlocks == 1 && Base::num_rows() <= kQuantizedTileRows);
  }

  // The blocks of a thread lie one behind the other, so that what is fetched ahead is the next one.
  void stream(const Panel<F>& panel, const Panel<F>&) {
    if constexpr (kLineBlocks == 1) {
      if (params_.num_rows > 1) return stream_tile(panel);
    }
    stream_rows<1, kLineBlocks, 1>(panel);
    finish(panel, row_, Base::num_rows(), sums_);
  }

  void multiply(const Panel<F>& panel, const Panel<F>& next_panel, bool has_next) {
    const std::int64_t in_features = params_.in_features;
    for (std::int64_t k = 0; k < in_features; k += kFetchedInputs) {
      const std::int64_t k_end = end_of(k, kFetchedInputs);
      const bool last = k_end == in_features;
      Prefetch<F> prefetch;
      if (!last || has_next) {
        const Panel<F>& next = last ? next_panel : panel;
        const std::int64_t next_k = last ? 0 : k_end;
        const std::int64_t num_tiles =
            (Base::num_rows() + kQuantizedTileRows - 1) / kQuantizedTileRows;
        prefetch = Prefetch<F>(next.blocks, next.num_blocks, next_k, end_of(next_k, kFetchedInputs),
                               num_tiles * panel.num_blocks * ((k_end - k) / kStepInputs));
      }
      for (std::int64_t from = k; from < k_end; from = end_of(from, panel_inputs())) {
        for (std::int64_t row = row_; row < row_end_; row += kQuantizedTileRows) {
          multiply_tile(panel, row, from, end_of(from, panel_inputs()), prefetch);
        }
      }
    }
    finish(panel, row_, Base::num_rows(), sums_);
  }

 private:
  std::int64_t panel_inputs() const {
    return group_size_ > kPanelInputs ? group_size_ : kPanelInputs;
  }
  std::int64_t end_of(std::int64_t k, std::int64_t most) const {
    return k + most < params_.in_features ? k + most : params_.in_features;
  }
  // V blocks of a panel from block i on; behind the last one, that again.
  template <int V>
  static void blocks_from(const Panel<F>& panel, int i, const Block<F>* (&blocks)[V]) {
    for (int v = 0; v < V; ++v) {
      blocks[v] = &panel.blocks[i + v < panel.num_blocks ? i + v : panel.num_blocks - 1];
    }
  }

  // All inputs of a panel, for R rows of the first tile of the share.
  template <int R, int V, int H>
  void stream_rows(const Panel<F>& panel) {
    constexpr int kStepLines = kStepInputs / F::kLineInputs;
    const auto fetch = [](const char* w) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int i = 0; i < kStepLines; ++i) prefetch_l2(w + kStreamAheadBytes + i * F::kLineBytes);
    };
    for (int i = 0; i < panel.num_blocks; i += V) {
      const Block<F>* blocks[V];
      blocks_from<V>(panel, i, blocks);
      multiply_quantized<F, R, V>(blocks, group_size_, 0, params_.in_features, tile_at<H>(row_),
                                  fetch, sums_ + i * kLanes);
    }
  }

  // The same for all rows of the share, which are one tile.
  template <int R = 2>
  void stream_tile(const Panel<F>& panel) {
    if constexpr (R < kQuantizedTileRows) {
      if (Base::num_rows() > R) return stream_tile<R + 2>(panel);
    }
    stream_rows<R, 1, kQuantizedTileRows>(panel);
    finish(panel, row_, Base::num_rows(), sums_);
  }

  // The inputs [k, k_end) of a panel, for the tile of rows from `row` on.
  template <int R = 2>
  void multiply_tile(const Panel<F>& panel, std::int64_t row, std::int64_t k, std::int64_t k_end,
                     Prefetch<F>& prefetch) {
    if constexpr (R < kQuantizedTileRows) {
      if (row_end_ - row > R) return multiply_tile<R + 2>(panel, row, k, k_end, prefetch);
    }
    const auto fetch = [&](const char*) __attribute__((always_inline)) { prefetch.step(); };
    float* sums = sums_ + (row - row_) * kPanelWidth;
    for (int i = 0; i < panel.num_blocks; ++i) {
      const Block<F>* block = &panel.blocks[i];
      multiply_quantized<F, R, 1>(&block, group_size_, k, k_end, tile_at<kQuantizedTileRows>(row),
                                  fetch, sums + i * kLanes);
    }
  }

  template <int H>
  QuantizedTile<H> tile_at(std::int64_t row) const {
    const auto* values = static_cast<const std::int8_t*>(task_.x) + row * task_.x_stride;
    return {values, task_.x_scales + row * num_groups_, task_.x_sums + row * num_groups_};
  }

  const std::int64_t group_size_ = params_.weights[0].group_size;
  const std::int64_t num_groups_ = params_.in_features / group_size_;
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
