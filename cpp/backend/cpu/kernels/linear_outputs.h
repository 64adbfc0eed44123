#pragma once

#include "cpp/backend/cpu/kernels/linear.h"
#include "cpp/backend/cpu/kernels/linear_tiles.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

// Blocks computed together: outputs of one weight, or as many of gate and behind them of up.
template <typename F>
struct Panel {
  OutputRange range;
  int num_groups;
  int num_blocks;
  Block<F> blocks[kMostPanelBlocks];
};

// The outputs of one op's weights, one weight after the other, in groups of kLanes.
template <typename F>
class Outputs {
 public:
  explicit Outputs(const LinearParams& params) : params_(params) {}

  bool is_gated() const { return params_.epilogue == LinearEpilogue::kGated; }
  int panel_groups() const {
    if (!is_gated()) return kPanelBlocks;
    const bool streams = params_.num_rows == 1 && params_.weights[0].layout == WeightLayout::kOutIn;
    return (streams ? kMostPanelBlocks : kPanelBlocks) / 2;
  }
  std::int64_t num_groups() const {
    std::int64_t count = 0;
    const int num_weights = is_gated() ? 1 : params_.num_weights;
    for (int i = 0; i < num_weights; ++i) count += groups_of(params_.weights[i].out_features);
    return count;
  }

  // The panel of the groups from `group` on, at most up to `end` and to the end of its weight.
  Panel<F> panel_at(std::int64_t group, std::int64_t end) const {
    Panel<F> panel{};
    std::int64_t limit = end - group;
    int w = 0;
    for (; group >= groups_of(params_.weights[w].out_features); ++w) {
      group -= groups_of(params_.weights[w].out_features);
      panel.range.column += params_.weights[w].out_features;
    }
    const std::int64_t num_outputs = params_.weights[w].out_features;
    if (groups_of(num_outputs) - group < limit) limit = groups_of(num_outputs) - group;
    panel.num_groups = limit < panel_groups() ? static_cast<int>(limit) : panel_groups();
    panel.range.weight = w;
    panel.range.output = group * kLanes;
    panel.range.column += panel.range.output;
    const std::int64_t rest = num_outputs - panel.range.output;
    const int width = panel.num_groups * kLanes;
    panel.range.num_outputs = rest < width ? static_cast<int>(rest) : width;
    for (int i = 0; i < panel.num_groups; ++i) {
      panel.blocks[panel.num_blocks++] = block_at(w, panel.range.output + i * kLanes);
    }
    for (int i = 0; is_gated() && i < panel.num_groups; ++i) {
      panel.blocks[panel.num_blocks++] = block_at(1, panel.range.output + i * kLanes);
    }
    return panel;
  }

 private:
  static std::int64_t groups_of(std::int64_t num_outputs) {
    return (num_outputs + kLanes - 1) / kLanes;
  }

  Block<F> block_at(int w, std::int64_t output) const {
    const LinearWeight& weight = params_.weights[w];
    const auto* data = static_cast<const char*>(weight.data);
    const std::int64_t rest = weight.out_features - output;
    const int num_outputs = rest < kLanes ? static_cast<int>(rest) : kLanes;
    if constexpr (F::kQuantized) {
      const std::int64_t lane = output % kBlockOutputs;
      const std::int64_t first = output - lane;
      const std::int64_t scale = first * (params_.in_features / weight.group_size) + lane;
      return {data + first * F::weight_bytes(params_.in_features) + 4 * lane,
              F::kLineBytes,
              weight.layout,
              num_outputs,
              weight.scales + scale,
              weight.zero_points ? weight.zero_points + scale : nullptr};
    }
    const bool out_in = weight.layout == WeightLayout::kOutIn;
    constexpr std::int64_t kWeightBytes = sizeof(typename F::Weight);
    const std::int64_t stride =
        out_in ? F::weight_bytes(params_.in_features) : weight.out_features * kWeightBytes;
    return {data + output * (out_in ? stride : kWeightBytes), stride, weight.layout, num_outputs};
  }

  const LinearParams& params_;
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
