#pragma once

#include "cpp/backend/cpu/kernels/linear_share.h"

// A share of a linear op with weights of floats.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// Up to this many rows use weights from registers.
inline constexpr std::int64_t kStreamRows = 8;
static_assert(kTileRows <= kMaxTileRows && kStreamRows <= kMaxTileRows);

template <typename F>
class FloatShare : public LinearShare<F> {
  using Base = LinearShare<F>;
  using Operand = typename F::Operand;
  using Base::finish, Base::panel_, Base::params_, Base::row_, Base::row_end_, Base::rows_of_x,
      Base::sums_, Base::task_;

 public:
  using Base::Base;

  bool streams() const {
    return Base::num_rows() <= kStreamRows && params_.weights[0].layout == WeightLayout::kOutIn;
  }

  void stream(const Panel<F>& panel, const Panel<F>& next_panel) {
    const int num_rows = static_cast<int>(Base::num_rows());
    const Operand* x[kStreamRows];
    rows_of_x(row_, kStreamRows, 0, x);
    for (int i = 0; i < panel.num_blocks; ++i) {
      const bool last = i + 1 == panel.num_blocks;
      const Block<F>& next = last ? next_panel.blocks[0] : panel.blocks[i + 1];
      const std::int64_t in_features = params_.in_features;
      float* sums = sums_ + i * kLanes;
      if (num_rows == 1 && task_.fetches_streams) {
        stream_block_once<F, true>(panel.blocks[i], in_features, x[0], sums);
      } else if (num_rows == 1) {
        stream_block_once<F, false>(panel.blocks[i], in_features, x[0], sums);
      } else if (num_rows == 2) {
        stream_block<F, 2>(panel.blocks[i], next, in_features, x, sums);
      } else if (num_rows <= 4) {
        stream_block<F, 4>(panel.blocks[i], next, in_features, x, sums);
      } else if (num_rows <= 6) {
        stream_block<F, 6>(panel.blocks[i], next, in_features, x, sums);
      } else if (task_.fetches_streams) {
        stream_block<F, 8, 4>(panel.blocks[i], next, in_features, x, sums);
      } else {
        stream_block<F, 8>(panel.blocks[i], next, in_features, x, sums);
      }
    }
    finish(panel, row_, num_rows, sums_);
  }

  void multiply(const Panel<F>& panel, const Panel<F>& next_panel, bool has_next) {
    const std::int64_t in_features = params_.in_features;
    std::int64_t k = 0;
    do {
      const std::int64_t k_end = end_of_pass(k);
      const bool last = k_end == in_features;
      for (int i = 0; i < panel.num_blocks && is_packed(panel.blocks[i]); ++i) {
        pack_block(panel.blocks[i], k, k_end, packed_block(i));
      }
      Prefetch<F> prefetch;
      if (!last || has_next) {
        const Panel<F>& next = last ? next_panel : panel;
        const std::int64_t next_k = last ? 0 : k_end;
        const std::int64_t num_tiles = (row_end_ - row_ + kTileRows - 1) / kTileRows;
        prefetch = Prefetch<F>(next.blocks, next.num_blocks, next_k, end_of_pass(next_k),
                               num_tiles * panel.num_blocks * steps_of_block(k_end - k));
      }
      multiply_pass(panel, k, k_end, prefetch);
      k = k_end;
    } while (k < in_features);
  }

 private:
  std::int64_t end_of_pass(std::int64_t k) const {
    const std::int64_t end = k + segment_inputs<F>();
    return end < params_.in_features ? end : params_.in_features;
  }

  // Steps of the inner loops for one tile of rows and one block.
  static std::int64_t steps_of_block(std::int64_t num_inputs) {
    return (num_inputs + F::kVecInputs - 1) / F::kVecInputs * (kLanes / 4);
  }

  static bool is_packed(const Block<F>& block) {
    return !F::kInPlace || block.layout == WeightLayout::kInOut;
  }
  std::byte* packed_block(int i) const { return panel_ + i * kLanes * kPanelRowBytes; }

  // All rows of the share times the inputs [k, k_end) of a panel.
  void multiply_pass(const Panel<F>& panel, std::int64_t k, std::int64_t k_end,
                     Prefetch<F>& prefetch) {
    // With the sums of one pass done at its end, those of the next rows may take their place.
    const std::int64_t sums_stride = k > 0 || k_end < params_.in_features ? kPanelWidth : 0;
    for (std::int64_t row = row_; row < row_end_;) {
      const std::int64_t rest = row_end_ - row;
      const bool is_full = rest % kTileRows == 0 || rest % kTileRows == kTileRows - 1;
      const int tile_rows = rest == 1 ? 1 : is_full ? kTileRows : kSmallTileRows;
      float* sums = sums_ + (row - row_) * sums_stride;
      if (tile_rows == 1) {
        multiply_rows<1>(panel, row, k, k_end, prefetch, sums);
      } else if (tile_rows == kTileRows) {
        multiply_rows<kTileRows>(panel, row, k, k_end, prefetch, sums);
      } else {
        multiply_rows<kSmallTileRows>(panel, row, k, k_end, prefetch, sums);
      }
      const int num_rows = rest < tile_rows ? static_cast<int>(rest) : tile_rows;
      if (k_end == params_.in_features) finish(panel, row, num_rows, sums);
      row += tile_rows;
    }
  }

  // A call a tile would cost a twentieth of its time: those of a panel lie in one loop.
  template <int R>
  [[gnu::noinline]] void multiply_rows(const Panel<F>& panel, std::int64_t row, std::int64_t k,
                                       std::int64_t k_end, Prefetch<F>& prefetch, float* sums) {
    const Operand* x[R];
    rows_of_x(row, R, k, x);
    for (int i = 0; i < panel.num_blocks; ++i) {
      const Block<F>& block = panel.blocks[i];
      float* block_sums = sums + i * kLanes;
      for (int quad = 0; quad < block.num_outputs; quad += 4) {
        const Operand* w[4];
        operand_rows(block, i, quad, k, w);
        multiply_tile<F, R>(w, x, k_end - k, k == 0, prefetch, block_sums + quad);
      }
    }
  }

  // Rows of block i of a panel as operands from input k on: packed, or where they lie.
  void operand_rows(const Block<F>& block, int i, int quad, std::int64_t k,
                    const Operand* (&rows)[4]) const {
    if constexpr (F::kInPlace) {
      if (!is_packed(block)) return rows_of_outputs(block, quad, k, rows);
    }
    for (int v = 0; v < 4; ++v) {
      rows[v] = reinterpret_cast<const Operand*>(packed_block(i) + (quad + v) * kPanelRowBytes);
    }
  }
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
