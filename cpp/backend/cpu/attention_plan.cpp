#include "cpp/backend/cpu/attention_plan.h"

#include <algorithm>

namespace pagedcore::cpu {
namespace {

// Query rows (queries times heads of one KV head) of a unit: enough to hide the packing of a tile
// behind the arithmetic, few enough for their state to stay in L2.
constexpr std::int32_t kUnitRows = 128;

std::int32_t num_tiles(std::int32_t positions) {
  return (positions + kAttentionTile - 1) / kAttentionTile;
}

}  // namespace

void AttentionPlan::prepare(const ForwardBatch& batch, const PagedAttentionParams& params) {
  if (is_ready_) return;
  spans_.clear();
  passes_.clear();
  units_.clear();
  max_unit_queries_ = 0;
  const auto group = static_cast<std::int32_t>(params.num_heads / params.cache.num_kv_heads);
  const std::int32_t chunk = std::max(1, kUnitRows / group);
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
  std::ranges::stable_sort(units_, std::ranges::greater{}, &AttentionUnit::cost);
  is_ready_ = true;
}

void AttentionPlan::add_unit(std::int32_t first_span, std::int32_t first_pass) {
  AttentionUnit unit;
  unit.first_span = first_span;
  unit.end_span = static_cast<std::int32_t>(spans_.size());
  unit.first_pass = first_pass;
  unit.end_pass = static_cast<std::int32_t>(passes_.size());
  std::int32_t queries = 0;
  for (std::int32_t i = first_span; i < unit.end_span; ++i) queries += spans_[i].num_queries;
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
  max_unit_queries_ = std::max(max_unit_queries_, queries);
  units_.push_back(unit);
}

}  // namespace pagedcore::cpu
