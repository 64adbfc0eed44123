#pragma once

#include "cpp/backend/cpu/kernels/linear.h"
#include "cpp/backend/cpu/kernels/linear_outputs.h"
#include "cpp/backend/cpu/kernels/linear_quantized.h"
#include "cpp/backend/cpu/kernels/partition.h"

// What drives the inner loops: one thread's share of a linear op, panel by panel.
namespace pagedcore::cpu::PAGEDCORE_ISA {

inline constexpr std::int64_t kStreamRows = 8;  // up to this many rows use weights from registers
// Rows whose sums registers hold; a few fewer fit a rest better.
inline constexpr int kTileRows = kNumRegisters >= 32 ? 6 : 3;
inline constexpr int kSmallTileRows = kNumRegisters >= 32 ? 4 : 2;
inline constexpr std::int64_t kMaxFirstPrefetch = 32 << 10;

// Inputs that are multiplied at once for all rows.
template <typename F>
constexpr std::int64_t pass_inputs() {
  if constexpr (F::kQuantized)
    return kSegmentQuads * 4 * F::kUnitInputs;
  else
    return segment_inputs<F>();
}

template <typename F>
class LinearRunner {
 public:
  using Operand = typename F::Operand;

  LinearRunner(const LinearTask& task, int thread)
      : task_(task),
        params_(task.params),
        outputs_(task.params),
        x_(static_cast<const Operand*>(task.x)),
        x_stride_(task.x_stride),
        panel_(task.scratch + thread * task.scratch_bytes),
        copy_(panel_ + kPanelBytes),
        sums_(reinterpret_cast<float*>(copy_ + kCopyBytes)) {}

  // All groups of `queue` that this thread gets.
  void run(Span rows, GroupQueue& queue, int thread) {
    row_ = rows.begin;
    row_end_ = rows.end;
    Span groups = queue.first(thread);
    if (groups.empty()) return;
    const bool streams =
        row_end_ - row_ <= kStreamRows && params_.weights[0].layout == WeightLayout::kOutIn;
    Panel<F> panel = outputs_.panel_at(groups.begin, groups.end);
    if (streams) prefetch_block(panel.blocks[0]);
    for (bool goes_on = true; goes_on;) {
      groups.begin += panel.num_groups;
      if (groups.empty()) groups = queue.take();
      goes_on = !groups.empty();
      const Panel<F> next = goes_on ? outputs_.panel_at(groups.begin, groups.end) : panel;
      if (streams) {
        stream(panel, next);
      } else {
        multiply(panel, next, goes_on);
      }
      panel = next;
    }
  }

 private:
  // Rows [row, row + count) of x from input k on; behind the last row of the share, that row again.
  void rows_of_x(std::int64_t row, int count, std::int64_t k, const Operand** x) const {
    for (int r = 0; r < count; ++r) {
      x[r] = x_ + (row + r < row_end_ ? row + r : row_end_ - 1) * x_stride_ + k;
    }
  }

  void finish(const Panel<F>& panel, std::int64_t row, int num_rows, const float* sums) const {
    store_outputs(params_, panel.range, row, num_rows, sums, kPanelWidth,
                  outputs_.is_gated() ? panel.num_groups * kLanes : 0);
  }

  void prefetch_block(const Block<F>& block) const {
    const std::int64_t num_bytes = block.num_outputs * block.stride;
    for (std::int64_t i = 0; i < num_bytes && i < kMaxFirstPrefetch; i += 64)
      prefetch_l2(block.data + i);
  }

  void stream(const Panel<F>& panel, const Panel<F>& next_panel) {
    const int num_rows = static_cast<int>(row_end_ - row_);
    const Operand* x[kStreamRows];
    rows_of_x(row_, kStreamRows, 0, x);
    for (int i = 0; i < panel.num_blocks; ++i) {
      const bool last = i + 1 == panel.num_blocks;
      const Block<F>& next = last ? next_panel.blocks[0] : panel.blocks[i + 1];
      float* sums = sums_ + i * kLanes;
      if (num_rows == 1) {
        stream_one<1>(panel.blocks[i], next, x, sums);
      } else if (num_rows == 2) {
        stream_one<2>(panel.blocks[i], next, x, sums);
      } else if (num_rows <= 4) {
        stream_one<4>(panel.blocks[i], next, x, sums);
      } else {
        stream_one<8>(panel.blocks[i], next, x, sums);
      }
    }
    finish(panel, row_, num_rows, sums_);
  }

  template <int R>
  void stream_one(const Block<F>& block, const Block<F>& next, const Operand* const* x,
                  float* sums) const {
    if constexpr (F::kQuantized) {
      stream_quantized<F, R>(block, next, params_.in_features, params_.weights[0].group_size, x,
                             quantized_rows(row_, R), copy_, sums);
    } else {
      stream_block<F, R>(block, next, params_.in_features, x, sums);
    }
  }

  QuantizedRows quantized_rows(std::int64_t row, int count) const {
    const std::int64_t num_groups = params_.in_features / params_.weights[0].group_size;
    QuantizedRows rows;
    for (int r = 0; r < count; ++r) {
      const std::int64_t at = (row + r < row_end_ ? row + r : row_end_ - 1) * num_groups;
      rows.scales[r] = task_.x_scales + at;
      rows.sums[r] = task_.x_sums + at;
    }
    return rows;
  }

  void multiply(const Panel<F>& panel, const Panel<F>& next_panel, bool has_next) {
    const std::int64_t in_features = params_.in_features;
    std::int64_t k = 0;
    do {
      const std::int64_t k_end = end_of_pass(k);
      const bool last = k_end == in_features;
      for (int i = 0; i < panel.num_blocks; ++i) pack(panel.blocks[i], k, k_end, i);
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

  // Inputs from k on that fill the packed panel: a segment, or whole groups.
  std::int64_t end_of_pass(std::int64_t k) const {
    const std::int64_t end = k + pass_inputs<F>();
    return end < params_.in_features ? end : params_.in_features;
  }

  // Steps of the inner loops for one tile of rows and one block.
  static std::int64_t steps_of_block(std::int64_t num_inputs) {
    if constexpr (F::kQuantized)
      return num_inputs / (4 * F::kUnitInputs);
    else
      return (num_inputs + F::kVecInputs - 1) / F::kVecInputs * (kLanes / 4);
  }

  void pack(const Block<F>& block, std::int64_t k, std::int64_t k_end, int i) {
    if constexpr (F::kQuantized) {
      pack_quantized(block, k, k_end, copy_, packed_block(i));
    } else if (is_packed(block)) {
      pack_block(block, k, k_end, packed_block(i));
    }
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

  template <int R>
  void multiply_rows(const Panel<F>& panel, std::int64_t row, std::int64_t k, std::int64_t k_end,
                     Prefetch<F>& prefetch, float* sums) {
    const Operand* x[R];
    rows_of_x(row, R, k, x);
    for (int i = 0; i < panel.num_blocks; ++i) {
      const Block<F>& block = panel.blocks[i];
      float* block_sums = sums + i * kLanes;
      if constexpr (F::kQuantized) {
        multiply_quantized<F, R>(packed_block(i), steps_of_block(k_end - k), x, block,
                                 quantized_rows(row, R), k, params_.weights[0].group_size, prefetch,
                                 block_sums);
      } else {
        for (int quad = 0; quad < block.num_outputs; quad += 4) {
          const Operand* w[4];
          operand_rows(block, i, quad, k, w);
          multiply_tile<F, R>(w, x, k_end - k, k == 0, prefetch, block_sums + quad);
        }
      }
    }
  }

  // Rows of block i of a panel as operands from input k on: packed, or where they lie.
  void operand_rows(const Block<F>& block, int i, int quad, std::int64_t k,
                    const Operand* (&rows)[4]) const {
    if constexpr (F::kInPlace) {
      if (!is_packed(block)) return rows_of_quad(block, quad, k, rows);
    }
    for (int v = 0; v < 4; ++v) {
      rows[v] = reinterpret_cast<const Operand*>(packed_block(i) + (quad + v) * kPanelRowBytes);
    }
  }

  const LinearTask& task_;
  const LinearParams& params_;
  const Outputs<F> outputs_;
  const Operand* x_;
  std::int64_t x_stride_;
  std::byte* panel_;  // [kPanelWidth, kPanelRowBytes], or [kPanelBlocks] of quantised weights
  std::byte* copy_;   // kCopyBytes; of a quantised block that is not whole
  float* sums_;       // [rows, kPanelWidth]
  std::int64_t row_ = 0;
  std::int64_t row_end_ = 0;
};

template <typename F>
void run_linear(const LinearTask& task, ThreadPool& pool) {
  const Outputs<F> outputs(task.params);
  const std::int64_t num_rows = task.params.num_rows;
  const Partition partition(outputs.num_groups(), num_rows, kTileRows, pool.size());
  if (!partition.cuts_rows()) {
    GroupQueue queue({0, outputs.num_groups()}, pool.size(), outputs.panel_groups());
    return pool.run(
        [&](int thread) { LinearRunner<F>(task, thread).run({0, num_rows}, queue, thread); });
  }
  pool.run([&](int thread) {
    const Share share = partition.share(thread);
    if (share.empty()) return;
    GroupQueue own(share.groups, 1, outputs.panel_groups());
    LinearRunner<F>(task, thread).run(share.rows, own, 0);
  });
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
