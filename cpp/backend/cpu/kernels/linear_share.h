#pragma once

#include "cpp/backend/cpu/kernels/linear.h"
#include "cpp/backend/cpu/kernels/linear_outputs.h"
#include "cpp/backend/cpu/kernels/partition.h"

// What drives the inner loops: one thread's share of a linear op, panel by panel.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// Rows whose sums registers hold; a few fewer fit a rest better.
inline constexpr int kTileRows = kNumRegisters >= 32 ? 6 : 3;
inline constexpr int kSmallTileRows = kNumRegisters >= 32 ? 4 : 2;
// Rows that any inner loop takes at once.
inline constexpr int kMaxTileRows = 8;
static_assert(kMostPanelBlocks <= kMaxTileRows * kPanelBlocks);

// Some rows of an op, and the memory of the thread that multiplies them.
template <typename F>
class LinearShare {
 public:
  using Format = F;
  using Operand = typename F::Operand;
  static constexpr int kRowStep = kTileRows;  // threads share rows at its multiples

  LinearShare(const LinearTask& task, Span rows, int thread)
      : task_(task),
        params_(task.params),
        outputs_(task.params),
        row_(rows.begin),
        row_end_(rows.end),
        panel_(task.scratch + thread * task.scratch_bytes),
        sums_(reinterpret_cast<float*>(panel_ + kPanelBytes)) {}

  const Outputs<F>& outputs() const { return outputs_; }

 protected:
  std::int64_t num_rows() const { return row_end_ - row_; }

  // Rows [row, row + count) of x from input k on; behind the last row of the share, that row again.
  void rows_of_x(std::int64_t row, int count, std::int64_t k, const Operand** x) const {
    const auto* first = static_cast<const Operand*>(task_.x);
    for (int r = 0; r < count; ++r) {
      x[r] = first + (row + r < row_end_ ? row + r : row_end_ - 1) * task_.x_stride + k;
    }
  }

  void finish(const Panel<F>& panel, std::int64_t row, std::int64_t num_rows,
              const float* sums) const {
    store_outputs(params_, panel.range, row, static_cast<int>(num_rows), sums, kPanelWidth,
                  outputs_.is_gated() ? panel.num_groups * kLanes : 0);
  }

  const LinearTask& task_;
  const LinearParams& params_;
  const Outputs<F> outputs_;
  const std::int64_t row_;
  const std::int64_t row_end_;
  std::byte* const panel_;  // kPanelBytes: packed weights
  float* const sums_;       // [rows, kPanelWidth]
};

// All groups of `queue` that a thread gets. Of a share, streams() says whether its rows are so few
// that weights go from memory to registers; then stream(panel, next) computes a panel, else
// multiply(panel, next, has_next), and either fetches the beginning of `next` meanwhile.
template <typename Share>
void run_share(Share&& share, GroupQueue& queue, int thread) {
  const auto& outputs = share.outputs();
  Span groups = queue.take(thread);
  if (groups.empty()) return;
  auto panel = outputs.panel_at(groups.begin, groups.end);
  for (bool goes_on = true; goes_on;) {
    groups.begin += panel.num_groups;
    if (groups.empty()) groups = queue.take(thread);
    goes_on = !groups.empty();
    const auto next = goes_on ? outputs.panel_at(groups.begin, groups.end) : panel;
    if (share.streams()) {
      share.stream(panel, next);
    } else {
      share.multiply(panel, next, goes_on);
    }
    panel = next;
  }
}

template <typename Share>
void run_linear(const LinearTask& task, ThreadPool& pool) {
  const Outputs<typename Share::Format> outputs(task.params);
  const std::int64_t num_rows = task.params.num_rows;
  const Partition partition(outputs.num_groups(), num_rows, Share::kRowStep, pool.size());
  if (!partition.cuts_rows()) {
    GroupQueue queue({0, outputs.num_groups()}, pool.size(), outputs.panel_groups());
    return pool.run(
        [&](int thread) { run_share(Share(task, Span{0, num_rows}, thread), queue, thread); });
  }
  pool.run([&](int thread) {
    const auto part = partition.share(thread);
    if (part.empty()) return;
    GroupQueue own(part.groups, 1, outputs.panel_groups());
    run_share(Share(task, part.rows, thread), own, 0);
  });
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
