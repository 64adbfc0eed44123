#include "cpp/backend/cpu/attention_plan.h"

#include <algorithm>
#include <cstring>
#include <tuple>

namespace pagedcore::cpu {
namespace {

// Rows (queries times query heads of a KV head) of a unit: enough to hide the packing of a tile
// behind the arithmetic, few enough for what belongs to them to stay in L2.
constexpr std::int32_t kUnitRows = 128;
// Rows that lie side by side in the lanes of a vector, of which none should be idle.
constexpr std::int32_t kLaneRows = 16;
// Rows of one span from which on it gains nothing from sharing tiles with others.
constexpr std::int32_t kLongSpanRows = 32;
// Rows of a task over all its KV heads.
constexpr std::int32_t kTaskRows = 512;
// Rows of a unit up to which its tiles may be split: what is kept of a part for a row is a
// two-hundredth of the keys and values of that part.
constexpr std::int32_t kSplitRows = 16;
// Tasks of a thread from which on their sizes even out.
constexpr std::int64_t kTasksPerThread = 4;

template <typename Integer>
Integer ceil_div(Integer a, Integer b) {
  return (a + b - 1) / b;
}

std::int32_t end_position(const AttentionSpan& span) {
  return span.first_position + span.num_queries;
}

std::int32_t end_tile(const AttentionSpan& span) {
  return (end_position(span) + kAttentionTile - 1) / kAttentionTile;
}

std::int32_t num_full_tiles(const AttentionSpan& span) {
  return end_position(span) / kAttentionTile;
}

}  // namespace

// The batch as the plan sees it.
struct AttentionPlan::Layout {
  const ForwardBatch& batch;
  std::int32_t block_size;
  std::int32_t num_kv_heads;
  std::int32_t group;   // query heads of a KV head
  std::int32_t window;  // 0: none

  bool is_long(const AttentionSpan& span) const {
    return span.num_queries * group >= kLongSpanRows;
  }

  // The first part with positions that the span's queries see.
  std::int32_t first_part(const AttentionSpan& span) const {
    if (window == 0) return 0;
    return std::max(0, span.first_position - window + 1) / (kAttentionTile * kAttentionPartTiles);
  }

  const BlockId* table(const AttentionSpan& span) const {
    return batch.block_tables + batch.table_rows[span.seq] * batch.table_stride;
  }

  // Blocks that hold the first `tiles` tiles.
  std::int32_t num_blocks(std::int32_t tiles) const {
    return (tiles * kAttentionTile + block_size - 1) / block_size;
  }

  // Some order in which spans whose tables begin alike are neighbours; long ones come last.
  bool is_before(const AttentionSpan& a, const AttentionSpan& b) const {
    if (is_long(a) || is_long(b)) {
      return std::tuple(is_long(a), a.first_token) < std::tuple(is_long(b), b.first_token);
    }
    const std::int32_t a_tiles = num_full_tiles(a);
    const std::int32_t b_tiles = num_full_tiles(b);
    const std::int32_t blocks = num_blocks(std::min(a_tiles, b_tiles));
    const int order = std::memcmp(table(a), table(b), blocks * sizeof(BlockId));
    if (order != 0) return order < 0;
    return std::tie(a_tiles, a.first_token) < std::tie(b_tiles, b.first_token);
  }

  // Full tiles that both hold in the same blocks.
  std::int32_t num_shared_tiles(const AttentionSpan& a, const AttentionSpan& b) const {
    if (is_long(a) || is_long(b)) return 0;
    const std::int32_t tiles = std::min(num_full_tiles(a), num_full_tiles(b));
    const std::int32_t blocks = num_blocks(tiles);
    const BlockId* a_table = table(a);
    const BlockId* b_table = table(b);
    std::int32_t same = 0;
    while (same < blocks && a_table[same] == b_table[same]) ++same;
    return std::min(tiles, same * block_size / kAttentionTile);
  }
};

void AttentionPlan::prepare(const ForwardBatch& batch, const PagedAttentionParams& params,
                            int num_threads) {
  if (is_ready_) return;
  const KvCacheView& cache = params.cache;
  const Layout layout{batch, static_cast<std::int32_t>(cache.block_size),
                      static_cast<std::int32_t>(cache.num_kv_heads),
                      static_cast<std::int32_t>(params.num_heads / cache.num_kv_heads),
                      static_cast<std::int32_t>(params.sliding_window)};
  add_spans(layout);
  add_units(layout, num_threads);
  add_tasks(layout, num_threads);
  is_ready_ = true;
}

std::int64_t AttentionPlan::num_tiles_read() const {
  std::int64_t tiles = 0;
  for (const AttentionPass& pass : passes_) tiles += pass.end_tile - pass.first_tile;
  return tiles;
}

void AttentionPlan::add_spans(const Layout& layout) {
  const ForwardBatch& batch = layout.batch;
  const std::int32_t chunk = std::max(1, kUnitRows / layout.group);
  spans_.clear();
  for (std::int32_t seq = 0; seq < batch.num_seqs; ++seq) {
    const std::int32_t begin = batch.query_starts[seq];
    const std::int32_t end = batch.query_starts[seq + 1];
    for (std::int32_t token = begin; token < end; token += chunk) {
      spans_.push_back({.seq = seq,
                        .first_token = token,
                        .first_position = batch.context_lens[seq] + token - begin,
                        .num_queries = std::min(chunk, end - token)});
    }
  }
  std::ranges::sort(spans_, [&](const auto& a, const auto& b) { return layout.is_before(a, b); });
  shared_tiles_.assign(spans_.size(), 0);
  for (std::size_t i = 1; i < spans_.size(); ++i) {
    shared_tiles_[i] = layout.num_shared_tiles(spans_[i - 1], spans_[i]);
  }
}

// Neighbours that share tiles make as few units as their rows allow, of like sizes, but so many
// that every thread gets its tasks.
void AttentionPlan::add_units(const Layout& layout, int num_threads) {
  passes_.clear();
  units_.clear();
  const auto num_spans = static_cast<std::int32_t>(spans_.size());
  const std::int64_t even =
      layout.batch.num_tokens * std::int64_t{layout.num_kv_heads} / (kTasksPerThread * num_threads);
  const std::int64_t rows = std::clamp<std::int64_t>(
      ceil_div<std::int64_t>(even * layout.group, kLaneRows) * kLaneRows, kLongSpanRows, kUnitRows);
  for (std::int32_t first = 0, end = 0; first < num_spans; first = end) {
    std::int64_t queries = 0;
    do {
      queries += spans_[end++].num_queries;
    } while (end < num_spans && shared_tiles_[end] > 0);
    const std::int64_t num_units = ceil_div(queries * layout.group, rows);
    std::int64_t done = 0;
    for (std::int64_t unit = 1; first < end; ++unit) {
      const std::int32_t first_of_unit = first;
      do {
        done += spans_[first++].num_queries;
      } while (first < end && done < queries * unit / num_units);
      add_unit(first_of_unit, first);
    }
  }
}

// The tree of spans [first_span, end_span) from `first_tile` on, which all of them share so far:
// first the tiles that all share, then each branch.
void AttentionPlan::add_passes(std::int32_t first_span, std::int32_t end_span,
                               std::int32_t first_tile) {
  if (end_span - first_span == 1) {
    passes_.push_back({first_span, end_span, first_tile, end_tile(spans_[first_span])});
    return;
  }
  const auto shared = shared_tiles_.begin();
  const std::int32_t fork = *std::min_element(shared + first_span + 1, shared + end_span);
  if (fork > first_tile) passes_.push_back({first_span, end_span, first_tile, fork});
  std::int32_t branch = first_span;
  for (std::int32_t i = first_span + 1; i <= end_span; ++i) {
    if (i < end_span && shared_tiles_[i] > fork) continue;
    add_passes(branch, i, fork);
    branch = i;
  }
}

void AttentionPlan::add_unit(std::int32_t first_span, std::int32_t end_span) {
  AttentionUnit unit;
  unit.first_span = first_span;
  unit.end_span = end_span;
  unit.first_pass = static_cast<std::int32_t>(passes_.size());
  add_passes(first_span, end_span, 0);
  unit.end_pass = static_cast<std::int32_t>(passes_.size());
  for (std::int32_t i = first_span; i < end_span; ++i) unit.num_queries += spans_[i].num_queries;
  for (std::int32_t i = unit.first_pass; i < unit.end_pass; ++i) {
    const AttentionPass& pass = passes_[i];
    // Reading a tile costs about what the arithmetic of a few queries does.
    std::int64_t queries = 2;
    for (std::int32_t s = pass.first_span; s < pass.end_span; ++s) queries += spans_[s].num_queries;
    unit.cost += (pass.end_tile - pass.first_tile) * queries;
    unit.end_tile = std::max(unit.end_tile, pass.end_tile);
  }
  units_.push_back(unit);
}

void AttentionPlan::add_tasks(const Layout& layout, int num_threads) {
  tasks_.clear();
  max_task_rows_ = 0;
  num_partials_ = 0;
  std::int64_t cost = 0;
  for (const AttentionUnit& unit : units_) cost += unit.cost;
  const std::int64_t num_tasks = num_threads > 1 ? kTasksPerThread * num_threads : 1;
  for (std::int32_t i = 0; i < num_units(); ++i) {
    add_tasks_of_unit(layout, i, ceil_div(units_[i].cost * num_tasks, cost));
  }
  std::ranges::sort(tasks_, [](const AttentionTask& a, const AttentionTask& b) {
    return std::tie(b.cost, a.unit, a.first_head, a.first_tile) <
           std::tie(a.cost, b.unit, b.first_head, b.first_tile);
  });
}

// At least `wanted` tasks if that can be: few rows are split by their tiles first, since the keys
// of several KV heads lie next to each other, then by KV heads.
void AttentionPlan::add_tasks_of_unit(const Layout& layout, std::int32_t index,
                                      std::int64_t wanted) {
  AttentionUnit& unit = units_[index];
  const std::int32_t kv_heads = layout.num_kv_heads;
  const std::int32_t rows = unit.num_queries * layout.group;
  const bool is_long = layout.is_long(spans_[unit.first_span]);
  const std::int32_t num_parts = unit.num_parts();
  std::int32_t first_part = num_parts;
  for (std::int32_t i = unit.first_span; i < unit.end_span; ++i) {
    first_part = std::min(first_part, layout.first_part(spans_[i]));
  }
  const std::int32_t seen_parts = num_parts - first_part;
  const std::int64_t most_splits = rows <= kSplitRows ? seen_parts : 1;
  const auto splits = static_cast<std::int32_t>(std::clamp<std::int64_t>(wanted, 1, most_splits));
  std::int32_t heads = is_long ? 1 : std::clamp(kTaskRows / rows, 1, kv_heads);
  while (heads > 1 && splits * ceil_div(kv_heads, heads) < wanted) heads = (heads + 1) / 2;
  unit.num_tasks = splits * ceil_div(kv_heads, heads);
  if (splits > 1) {
    unit.first_partial = num_partials_;
    num_partials_ += std::int64_t{num_parts} * rows * kv_heads;
  }
  for (std::int32_t head = 0; head < kv_heads; head += heads) {
    const std::int32_t end_head = std::min(head + heads, kv_heads);
    for (std::int32_t split = 0, part = 0; split < splits; ++split) {
      const std::int32_t end_part = first_part + seen_parts * (split + 1) / splits;
      tasks_.push_back({.unit = index,
                        .first_head = head,
                        .end_head = end_head,
                        .first_tile = part * kAttentionPartTiles,
                        .end_tile = std::min(end_part * kAttentionPartTiles, unit.end_tile),
                        .cost = unit.cost * (end_head - head) / splits});
      part = end_part;
    }
  }
  max_task_rows_ = std::max(max_task_rows_, rows * heads);
}

}  // namespace pagedcore::cpu
