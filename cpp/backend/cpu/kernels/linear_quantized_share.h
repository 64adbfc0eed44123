#pragma once

#include "cpp/backend/cpu/kernels/linear_quantized.h"
#include "cpp/backend/cpu/kernels/linear_share.h"

// A share of a linear op with weights of 8 or 4 bits.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// Inputs that are fetched at once, while those before are multiplied: a panel's stay in L2.
inline constexpr std::int64_t kFetchedInputs = 2048;
// Rows whose sums with kTileBlocks blocks registers hold.
inline constexpr int kQuantizedTileRows = kNumRegisters >= 32 ? 8 : 4;
static_assert(kPanelBlocks * kCopyBytes <= kPanelBytes && kPackedInputs <= kMaxGroupSize);

template <typename F>
class QuantizedShare : public LinearShare<F> {
  using Base = LinearShare<F>;
  using Operand = typename F::Operand;
  using Base::copy_, Base::finish, Base::params_, Base::row_, Base::row_end_, Base::rows_of_x,
      Base::sums_, Base::task_;

 public:
  using Base::Base;

  bool streams() const { return Base::num_rows() == 1; }

  void stream(const Panel<F>& panel, const Panel<F>& next_panel) {
    const Operand* x;
    rows_of_x(row_, 1, 0, &x);
    for (int i = 0; i < panel.num_blocks; ++i) {
      const bool last = i + 1 == panel.num_blocks;
      const Block<F>& next = last ? next_panel.blocks[0] : panel.blocks[i + 1];
      prefetch_scales(next_panel, num_groups_ * i / panel.num_blocks,
                      num_groups_ * (i + 1) / panel.num_blocks);
      stream_quantized(panel.blocks[i], next, params_.in_features, group_size_, x,
                       quantized_rows(row_, 1), panel_floats(), sums_ + i * kLanes);
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
                               num_tiles * num_pairs * ((k_end - k) / F::kStepInputs));
      }
      for (std::int64_t from = k; from < k_end; from = end_of(from, packed_inputs())) {
        multiply_packed(panel, next_panel, from, end_of(from, packed_inputs()), prefetch);
      }
    }
    finish(panel, row_, Base::num_rows(), sums_);
  }

 private:
  std::int64_t packed_inputs() const {
    return group_size_ > kPackedInputs ? group_size_ : kPackedInputs;
  }
  std::int64_t end_of(std::int64_t k, std::int64_t most) const {
    return k + most < params_.in_features ? k + most : params_.in_features;
  }
  float* panel_floats() const { return reinterpret_cast<float*>(Base::panel_); }
  float* packed_block(int i) const {
    return panel_floats() + i * packed_inputs() / F::kUnitInputs * kLanes;
  }

  // Those of a group lie side by side, groups far apart.
  static void prefetch_scales(const Panel<F>& panel, std::int64_t group, std::int64_t group_end) {
    for (; group < group_end; ++group) {
      for (int i = 0; i < panel.num_blocks; ++i) {
        prefetch_l2(panel.blocks[i].scales + group * panel.blocks[i].scale_stride);
      }
    }
  }

  // Packs the inputs [k, k_end) of a panel and multiplies all rows of the share by them.
  void multiply_packed(const Panel<F>& panel, const Panel<F>& next, std::int64_t k,
                       std::int64_t k_end, Prefetch<F>& prefetch) {
    for (int i = 0; i < panel.num_blocks; ++i) {
      pack_quantized(panel.blocks[i], k, k_end, copy_, packed_block(i));
    }
    prefetch_scales(next, k / group_size_, k_end / group_size_);
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
    for (int i = 0; i < panel.num_blocks; i += kTileBlocks) {
      const Block<F>* blocks[kTileBlocks];
      const float* panels[kTileBlocks];
      for (int v = 0; v < kTileBlocks; ++v) {  // behind the last block, that again
        const int block = i + v < panel.num_blocks ? i + v : panel.num_blocks - 1;
        blocks[v] = &panel.blocks[block];
        panels[v] = packed_block(block);
      }
      multiply_quantized<F, R>(blocks, panels, group_size_, k, k_end, x, rows, prefetch,
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
