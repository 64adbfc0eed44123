#pragma once

#include "cpp/backend/cpu/kernels/linear.h"
#include "cpp/backend/cpu/kernels/linear_tiles.h"
#include "cpp/backend/cpu/kernels/partition.h"

// What drives the inner loops: one thread's share of a linear op, panel by panel.
namespace pagedcore::cpu::PAGEDCORE_ISA {

inline constexpr std::int64_t kStreamRows = 8;  // up to this many rows use weights from registers
inline constexpr std::int64_t kPanelUnits =
    512;  // units of a packed panel: it stays in the L2 cache
inline constexpr int kTileRows = 6;
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
  Block<F> blocks[kPanelVectors];
};

template <typename F>
class LinearRunner {
 public:
  using Weight = typename F::Weight;
  using Operand = typename F::Operand;

  LinearRunner(const LinearTask& task, int thread)
      : params_(task.params),
        x_(static_cast<const Operand*>(task.x)),
        x_stride_(task.x_stride),
        panel_(reinterpret_cast<float*>(task.scratch + thread * task.scratch_bytes)),
        sums_(panel_ + kPanelUnits * kPanelWidth),
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
      streams ? stream(panel, next) : multiply(panel, next, group < end);
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
    const int most = gated_ ? kPanelVectors / 2 : kPanelVectors;
    panel.num_groups = limit <= most ? static_cast<int>(limit)
                       : most == 4 && (limit == 5 || limit == 6 || limit == 9) ? 3
                                                                               : most;
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
    const std::int64_t stride = out_in ? params_.in_features : weight.out_features;
    const std::int64_t rest = weight.out_features - output;
    return {static_cast<const Weight*>(weight.data) + output * (out_in ? stride : 1), stride,
            weight.layout, rest < kLanes ? static_cast<int>(rest) : kLanes};
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
    const auto* bytes = reinterpret_cast<const char*>(block.data);
    const std::int64_t num_bytes = block.num_outputs * block.stride * sizeof(Weight);
    for (std::int64_t i = 0; i < num_bytes && i < kMaxFirstPrefetch; i += 64)
      prefetch_l2(bytes + i);
  }

  void stream(const Panel<F>& panel, const Panel<F>& next_panel) {
    const int num_rows = static_cast<int>(row_end_ - row_);
    const Operand* x[kStreamRows];
    rows_of_x(row_, kStreamRows, 0, x);
    for (int i = 0; i < panel.num_blocks; ++i) {
      const bool last = i + 1 == panel.num_blocks;
      const Block<F>& next = last ? next_panel.blocks[0] : panel.blocks[i + 1];
      stream_some(panel.blocks[i], reinterpret_cast<const char*>(next.data), num_rows, x,
                  sums_ + i * kLanes);
    }
    finish(panel, row_, num_rows, sums_);
  }

  void stream_some(const Block<F>& block, const char* next, int num_rows, const Operand* const* x,
                   float* sums) const {
    const std::int64_t k = params_.in_features;
    if (num_rows == 1) return stream_block<F, 1>(block, next, k, x, sums);
    if (num_rows == 2) return stream_block<F, 2>(block, next, k, x, sums);
    if (num_rows <= 4) return stream_block<F, 4>(block, next, k, x, sums);
    stream_block<F, 8>(block, next, k, x, sums);
  }

  void multiply(const Panel<F>& panel, const Panel<F>& next_panel, bool has_next) {
    constexpr std::int64_t kPanelInputs = kPanelUnits * F::kStep;
    const std::int64_t in_features = params_.in_features;
    // With the sums of one pass done at its end, those of the next rows may take their place.
    const std::int64_t sums_stride = in_features > kPanelInputs ? kPanelWidth : 0;
    std::int64_t k = 0;
    do {
      const std::int64_t k_end = k + kPanelInputs < in_features ? k + kPanelInputs : in_features;
      const bool last = k_end == in_features;
      const std::int64_t num_units = (k_end - k + F::kStep - 1) / F::kStep;
      for (int i = 0; i < panel.num_blocks; ++i) {
        pack_block(panel.blocks[i], k, k_end, panel.num_blocks * kLanes, panel_ + i * kLanes);
      }
      Prefetch<F> prefetch;
      if (!last || has_next) {
        const Panel<F>& next = last ? next_panel : panel;
        const std::int64_t next_k = last ? 0 : k_end;
        const std::int64_t next_end =
            next_k + kPanelInputs < in_features ? next_k + kPanelInputs : in_features;
        const std::int64_t num_tiles = (row_end_ - row_ + kTileRows - 1) / kTileRows;
        prefetch = Prefetch<F>(next.blocks, next.num_blocks, next_k, next_end,
                               num_tiles * (num_units / 4) + 1);
      }
      for (std::int64_t row = row_; row < row_end_;) {
        const std::int64_t rest = row_end_ - row;
        const int tile_rows = rest % kTileRows == 0 || rest % kTileRows == 5 ? kTileRows : 4;
        const Operand* x[kTileRows];
        rows_of_x(row, tile_rows, k, x);
        float* sums = sums_ + (row - row_) * sums_stride;
        multiply_some(panel.num_blocks, tile_rows, num_units, x, k == 0, prefetch, sums);
        if (last) finish(panel, row, rest < tile_rows ? static_cast<int>(rest) : tile_rows, sums);
        row += tile_rows;
      }
      k = k_end;
    } while (k < in_features);
  }

  void multiply_some(int num_blocks, int num_rows, std::int64_t num_units, const Operand* const* x,
                     bool first, Prefetch<F>& prefetch, float* sums) const {
    const bool full = num_rows == kTileRows;
    if (num_blocks == 1) {
      full ? multiply_tile<F, kTileRows, 1>(panel_, num_units, x, first, prefetch, sums)
           : multiply_tile<F, 4, 1>(panel_, num_units, x, first, prefetch, sums);
    } else if (num_blocks == 2) {
      full ? multiply_tile<F, kTileRows, 2>(panel_, num_units, x, first, prefetch, sums)
           : multiply_tile<F, 4, 2>(panel_, num_units, x, first, prefetch, sums);
    } else if (num_blocks == 3) {
      full ? multiply_tile<F, kTileRows, 3>(panel_, num_units, x, first, prefetch, sums)
           : multiply_tile<F, 4, 3>(panel_, num_units, x, first, prefetch, sums);
    } else {
      full ? multiply_tile<F, kTileRows, kPanelVectors>(panel_, num_units, x, first, prefetch, sums)
           : multiply_tile<F, 4, kPanelVectors>(panel_, num_units, x, first, prefetch, sums);
    }
  }

  const LinearParams& params_;
  const Operand* x_;
  std::int64_t x_stride_;
  float* panel_;  // [num_units, num_blocks, kLanes]
  float* sums_;   // [rows, kPanelWidth]
  bool gated_;
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
