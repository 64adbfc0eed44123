#pragma once

#include "cpp/backend/cpu/kernels/linear.h"
#include "cpp/backend/cpu/kernels/linear_quantized.h"
#include "cpp/backend/cpu/kernels/partition.h"

// What drives the inner loops: one thread's share of a linear op, panel by panel.
namespace pagedcore::cpu::PAGEDCORE_ISA {

inline constexpr std::int64_t kStreamRows = 8;  // up to this many rows use weights from registers
// Rows whose sums registers hold; a few fewer fit a rest better.
inline constexpr int kTileRows = kNumRegisters >= 32 ? 6 : 3;
inline constexpr int kSmallTileRows = kNumRegisters >= 32 ? 4 : 2;
inline constexpr std::int64_t kMaxFirstPrefetch = 32 << 10;

inline constexpr std::int64_t num_groups(std::int64_t num_outputs) {
  return (num_outputs + kLanes - 1) / kLanes;
}

// Groups of kLanes outputs of all weights, one weight after the other.
inline std::int64_t num_groups(const LinearParams& params) {
  std::int64_t count = 0;
  const int num_weights = params.epilogue == LinearEpilogue::kGated ? 1 : params.num_weights;
  for (int i = 0; i < num_weights; ++i) count += num_groups(params.weights[i].out_features);
  return count;
}

// Blocks computed together: outputs of one weight, or as many of gate and behind them of up.
template <typename F>
struct Panel {
  OutputRange range;
  int num_groups;
  int num_blocks;
  Block<F> blocks[kPanelBlocks];
};

template <typename F>
class LinearRunner {
 public:
  using Operand = typename F::Operand;

  LinearRunner(const LinearTask& task, int thread)
      : task_(task),
        params_(task.params),
        x_(static_cast<const Operand*>(task.x)),
        x_stride_(task.x_stride),
        panel_(reinterpret_cast<float*>(task.scratch + thread * task.scratch_bytes)),
        copy_(panel_ + kPanelBlocks * kBlockFloats),
        sums_(copy_ + kBlockFloats),
        gated_(params_.epilogue == LinearEpilogue::kGated) {}

  void run(const Share& share) {
    row_ = share.rows.begin;
    row_end_ = share.rows.end;
    const bool streams =
        row_end_ - row_ <= kStreamRows && params_.weights[0].layout == WeightLayout::kOutIn;
    const std::int64_t end = share.groups.end;
    Panel<F> panel = panel_at(share.groups.begin, end);
    if (streams) prefetch_block(panel.blocks[0]);
    for (std::int64_t group = share.groups.begin; group < end;) {
      group += panel.num_groups;
      const Panel<F> next = group < end ? panel_at(group, end) : panel;
      if (streams) {
        stream(panel, next);
      } else {
        multiply(panel, next, group < end);
      }
      panel = next;
    }
  }

 private:
  // The panel of the groups from `group` on, at most up to `end` and to the end of its weight.
  Panel<F> panel_at(std::int64_t group, std::int64_t end) const {
    Panel<F> panel{};
    std::int64_t limit = end - group;
    int w = 0;
    for (; group >= num_groups(params_.weights[w].out_features); ++w) {
      group -= num_groups(params_.weights[w].out_features);
      panel.range.column += params_.weights[w].out_features;
    }
    const std::int64_t num_outputs = params_.weights[w].out_features;
    if (num_groups(num_outputs) - group < limit) limit = num_groups(num_outputs) - group;
    const int most = gated_ ? kPanelBlocks / 2 : kPanelBlocks;
    panel.num_groups = limit < most ? static_cast<int>(limit) : most;
    panel.range.weight = w;
    panel.range.output = group * kLanes;
    panel.range.column += panel.range.output;
    const std::int64_t rest = num_outputs - panel.range.output;
    const int width = panel.num_groups * kLanes;
    panel.range.num_outputs = rest < width ? static_cast<int>(rest) : width;
    for (int i = 0; i < panel.num_groups; ++i) {
      panel.blocks[panel.num_blocks++] = block_at(w, panel.range.output + i * kLanes);
    }
    for (int i = 0; gated_ && i < panel.num_groups; ++i) {
      panel.blocks[panel.num_blocks++] = block_at(1, panel.range.output + i * kLanes);
    }
    return panel;
  }

  Block<F> block_at(int w, std::int64_t output) const {
    const LinearWeight& weight = params_.weights[w];
    const bool out_in = weight.layout == WeightLayout::kOutIn;
    constexpr std::int64_t kWeightBytes = sizeof(typename F::Weight);
    const std::int64_t stride =
        out_in ? weight_bytes<F>(params_.in_features) : weight.out_features * kWeightBytes;
    const std::int64_t rest = weight.out_features - output;
    Block<F> block{
        static_cast<const char*>(weight.data) + output * (out_in ? stride : kWeightBytes), stride,
        weight.layout, rest < kLanes ? static_cast<int>(rest) : kLanes};
    if (F::kQuantized) {
      block.scales = weight.scales + output;
      block.zero_points = weight.zero_points ? weight.zero_points + output : nullptr;
      block.scale_stride = weight.out_features;
    }
    return block;
  }

  // Rows [row, row + count) of x from input k on; behind the last row of the share, that row again.
  void rows_of_x(std::int64_t row, int count, std::int64_t k, const Operand** x) const {
    for (int r = 0; r < count; ++r) {
      x[r] = x_ + (row + r < row_end_ ? row + r : row_end_ - 1) * x_stride_ + k;
    }
  }

  void finish(const Panel<F>& panel, std::int64_t row, int num_rows, const float* sums) const {
    store_outputs(params_, panel.range, row, num_rows, sums, kPanelWidth,
                  gated_ ? panel.num_groups * kLanes : 0);
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
      stream_block<F, R>(block, next, params_.in_features, x, copy_, sums);
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
                               num_tiles * panel.num_blocks * num_quads_);
      }
      multiply_pass(panel, k, k_end, prefetch);
      k = k_end;
    } while (k < in_features);
  }

  // Inputs from k on that fill the packed panel: a segment, or whole groups.
  std::int64_t end_of_pass(std::int64_t k) const {
    constexpr std::int64_t kPanelInputs = kSegmentQuads * 4 * F::kUnitInputs;
    return k + kPanelInputs < params_.in_features ? k + kPanelInputs : params_.in_features;
  }

  void pack(const Block<F>& block, std::int64_t k, std::int64_t k_end, int i) {
    float* panel = panel_ + i * kBlockFloats;
    if constexpr (F::kQuantized) {
      num_quads_ = pack_quantized(block, k, k_end, copy_, panel);
    } else {
      num_quads_ = pack_block(block, k, k_end, copy_, panel);
    }
  }

  // All rows of the share times the packed panel.
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
        multiply_rows<1>(panel, row, k, prefetch, sums);
      } else if (tile_rows == kTileRows) {
        multiply_rows<kTileRows>(panel, row, k, prefetch, sums);
      } else {
        multiply_rows<kSmallTileRows>(panel, row, k, prefetch, sums);
      }
      const int num_rows = rest < tile_rows ? static_cast<int>(rest) : tile_rows;
      if (k_end == params_.in_features) finish(panel, row, num_rows, sums);
      row += tile_rows;
    }
  }

  template <int R>
  void multiply_rows(const Panel<F>& panel, std::int64_t row, std::int64_t k, Prefetch<F>& prefetch,
                     float* sums) {
    const Operand* x[R];
    rows_of_x(row, R, k, x);
    for (int i = 0; i < panel.num_blocks; ++i) {
      const float* block = panel_ + i * kBlockFloats;
      if constexpr (F::kQuantized) {
        multiply_quantized<F, R>(block, num_quads_, x, panel.blocks[i], quantized_rows(row, R), k,
                                 params_.weights[0].group_size, prefetch, sums + i * kLanes);
      } else {
        multiply_tile<F, R>(block, num_quads_, x, k == 0, prefetch, sums + i * kLanes);
      }
    }
  }

  const LinearTask& task_;
  const LinearParams& params_;
  const Operand* x_;
  std::int64_t x_stride_;
  float* panel_;  // [kPanelBlocks][num_quads, 4, kLanes]
  float* copy_;   // of a block that is not whole
  float* sums_;   // [rows, kPanelWidth]
  bool gated_;
  std::int64_t num_quads_ = 0;
  std::int64_t row_ = 0;
  std::int64_t row_end_ = 0;
};

template <typename F>
void run_linear(const LinearTask& task, ThreadPool& pool) {
  const Partition partition(num_groups(task.params), task.params.num_rows, kTileRows, pool.size());
  pool.run([&](int thread) {
    const Share share = partition.share(thread);
    if (share.empty()) return;
    LinearRunner<F>(task, thread).run(share);
  });
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
