#pragma once

#include "cpp/backend/cpu/kernels/linear_quantized.h"
#include "cpp/backend/cpu/kernels/linear_share.h"

// A share of a linear op with weights of 8 or 4 bits.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// Inputs whose weights all rows meet before the next ones, or one group: a panel's stay in L1.
inline constexpr std::int64_t kPanelInputs = 256;
// Inputs that are fetched at once, while those before are multiplied: a panel's stay in L2.
inline constexpr std::int64_t kFetchedInputs = 2048;
// Blocks whose products are summed together, and rows whose sums with those registers hold.
inline constexpr int kTileBlocks = 2;
inline constexpr int kQuantizedTileRows = kNumRegisters >= 32 ? 8 : 4;
// Blocks side by side in a line: one row of x meets them together.
inline constexpr int kLineBlocks = kBlockOutputs / kLanes;

template <typename F>
class QuantizedShare : public LinearShare<F> {
  using Base = LinearShare<F>;
  using Operand = typename F::Operand;
  using Base::finish, Base::params_, Base::row_, Base::row_end_, Base::rows_of_x, Base::sums_,
      Base::task_;

 public:
  using Base::Base;

  bool streams() const { return Base::num_rows() == 1; }

  // The blocks of a thread lie one behind the other, so that what is fetched ahead is the next one.
  void stream(const Panel<F>& panel, const Panel<F>&) {
    const Operand* x;
    rows_of_x(row_, 1, 0, &x);
    const QuantizedRows rows = quantized_rows(row_, 1);
    const auto fetch = [](const char* w)
                           __attribute__((always_inline)) { prefetch_l2(w + kStreamAheadBytes); };
    for (int i = 0; i < panel.num_blocks; i += kLineBlocks) {
      const Block<F>* blocks[kLineBlocks];
      blocks_from<kLineBlocks>(panel, i, blocks);
      multiply_quantized<F, 1, kLineBlocks>(blocks, group_size_, 0, params_.in_features, &x, rows,
                                            fetch, sums_ + i * kLanes);
    }
    finish(panel, row_, 1, sums_);
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
        const std::int64_t num_pairs = (panel.num_blocks + kTileBlocks - 1) / kTileBlocks;
        prefetch = Prefetch<F>(next.blocks, next.num_blocks, next_k, end_of(next_k, kFetchedInputs),
                               num_tiles * num_pairs * ((k_end - k) / F::kLineInputs));
      }
      for (std::int64_t from = k; from < k_end; from = end_of(from, panel_inputs())) {
        multiply_inputs(panel, from, end_of(from, panel_inputs()), prefetch);
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

  // Multiplies all rows of the share by the inputs [k, k_end) of a panel.
  void multiply_inputs(const Panel<F>& panel, std::int64_t k, std::int64_t k_end,
                       Prefetch<F>& prefetch) {
    for (std::int64_t row = row_; row < row_end_;) {
      const std::int64_t rest = row_end_ - row;
      if (rest > 4 && kQuantizedTileRows > 4) {
        row += multiply_tile<kQuantizedTileRows>(panel, row, k, k_end, prefetch);
      } else if (rest > 2) {
        row += multiply_tile<4>(panel, row, k, k_end, prefetch);
      } else {
        row += multiply_tile<2>(panel, row, k, k_end, prefetch);
      }
    }
  }

  // Returns the number of rows.
  template <int R>
  int multiply_tile(const Panel<F>& panel, std::int64_t row, std::int64_t k, std::int64_t k_end,
                    Prefetch<F>& prefetch) {
    const Operand* x[R];
    rows_of_x(row, R, 0, x);
    const QuantizedRows rows = quantized_rows(row, R);
    float* sums = sums_ + (row - row_) * kPanelWidth;
    const auto fetch = [&](const char*) __attribute__((always_inline)) { prefetch.step(); };
    for (int i = 0; i < panel.num_blocks; i += kTileBlocks) {
      const Block<F>* blocks[kTileBlocks];
      blocks_from<kTileBlocks>(panel, i, blocks);
      multiply_quantized<F, R, kTileBlocks>(blocks, group_size_, k, k_end, x, rows, fetch,
                                            sums + i * kLanes);
    }
    return R;
  }

  QuantizedRows quantized_rows(std::int64_t row, int count) const {
    QuantizedRows rows;
    for (int r = 0; r < count; ++r) {
      const std::int64_t at = (row + r < row_end_ ? row + r : row_end_ - 1) * num_groups_;
      rows.scales[r] = task_.x_scales + at;
      rows.sums[r] = task_.x_sums + at;
    }
    return rows;
  }

  const std::int64_t group_size_ = params_.weights[0].group_size;
  const std::int64_t num_groups_ = params_.in_features / group_size_;
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
