#include "cpp/backend/cpu/attention_plan.h"

#include <algorithm>
#include <tuple>

namespace pagedcore::cpu {
namespace {

// Rows (queries times query heads) of a task: enough to hide the packing of a tile behind the
// arithmetic, few enough for their state to stay in L2.
constexpr std::int32_t kTaskRows = 128;
// Tasks of a thread from which on their sizes even out.
constexpr std::int64_t kTasksPerThread = 4;

std::int32_t num_tiles(std::int32_t positions) {
  return (positions + kAttentionTile - 1) / kAttentionTile;
}

}  // namespace

void AttentionPlan::prepare(const ForwardBatch& batch, const PagedAttentionParams& params,
                            int num_threads) {
  if (is_ready_) return;
  spans_.clear();
  passes_.clear();
  units_.clear();
  tasks_.clear();
  max_task_rows_ = 0;
  const auto group = static_cast<std::int32_t>(params.num_heads / params.cache.num_kv_heads);
  const std::int32_t chunk = std::max(1, kTaskRows / group);
  for (std::int32_t seq = 0; seq < batch.num_seqs; ++seq) {
    const std::int32_t end = batch.query_starts[seq + 1];
    for (std::int32_t token = batch.query_starts[seq]; token < end; token += chunk) {
      AttentionSpan span;
      span.seq = seq;
      span.first_token = token;
      span.first_position = batch.context_lens[seq] + token - batch.query_starts[seq];
      span.num_queries = std::min(chunk, end - token);
      const auto first_span = static_cast<std::int32_t>(spans_.size());
      const auto first_pass = static_cast<std::int32_t>(passes_.size());
      spans_.push_back(span);
      passes_.push_back(
          {first_span, first_span + 1, 0, num_tiles(span.first_position + span.num_queries)});
      add_unit(first_span, first_pass);
    }
  }
  add_tasks(static_cast<std::int32_t>(params.cache.num_kv_heads), group, num_threads);
  is_ready_ = true;
}

void AttentionPlan::add_unit(std::int32_t first_span, std::int32_t first_pass) {
  AttentionUnit unit;
  unit.first_span = first_span;
  unit.end_span = static_cast<std::int32_t>(spans_.size());
  unit.first_pass = first_pass;
  unit.end_pass = static_cast<std::int32_t>(passes_.size());
  for (std::int32_t i = first_span; i < unit.end_span; ++i) {
    unit.num_queries += spans_[i].num_queries;
  }
  for (std::int32_t i = first_pass; i < unit.end_pass; ++i) {
    const AttentionPass& pass = passes_[i];
    std::int64_t pass_queries = 0;
    for (std::int32_t s = pass.first_span; s < pass.end_span; ++s) {
      pass_queries += spans_[s].num_queries;
    }
    // Reading and packing a tile costs about what the arithmetic of a few queries does.
    constexpr std::int64_t kPackQueries = 2;
    unit.cost += (pass.end_tile - pass.first_tile) * (pass_queries + kPackQueries);
  }
  units_.push_back(unit);
}

// Several KV heads make one task where they are few rows: their keys lie next to each other.
void AttentionPlan::add_tasks(std::int32_t num_kv_heads, std::int32_t group, int num_threads) {
  std::int32_t most_heads = num_kv_heads;
  const auto num_units = static_cast<std::int64_t>(units_.size());
  while (most_heads > 1 && num_units * ((num_kv_heads + most_heads - 1) / most_heads) <
                               kTasksPerThread * num_threads) {
    most_heads = (most_heads + 1) / 2;
  }
  for (std::int32_t i = 0; i < num_units; ++i) {
    const std::int32_t rows = units_[i].num_queries * group;
    const std::int32_t heads = std::clamp(kTaskRows / rows, 1, most_heads);
    for (std::int32_t head = 0; head < num_kv_heads; head += heads) {
      const std::int32_t end = std::min(head + heads, num_kv_heads);
      tasks_.push_back({i, head, end, units_[i].cost * (end - head)});
    }
    max_task_rows_ = std::max(max_task_rows_, rows * heads);
  }
  std::ranges::sort(tasks_, [](const AttentionTask& a, const AttentionTask& b) {
    return std::tie(b.cost, a.unit, a.first_head) < std::tie(a.cost, b.unit, b.first_head);
  });
}

}  // namespace pagedcore::cpu
