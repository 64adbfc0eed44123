#pragma once

#include <cstdint>
#include <vector>

#include "pagedcore/export.h"
#include "pagedcore/forward_batch.h"
#include "pagedcore/ops.h"

namespace pagedcore::cpu {

// Attention runs over tiles of this many positions, at multiples of it: a query's arithmetic has
// one order whatever the batch, the chunking and the block size. A multiple of every vector.
inline constexpr std::int32_t kAttentionTile = 64;

// The softmax starts anew every so many tiles and joins what came before it: work on one sequence
// is split there without changing a bit.
inline constexpr std::int32_t kAttentionPartTiles = 4;

// Consecutive queries of one sequence.
struct AttentionSpan {
  std::int32_t seq = 0;
  std::int32_t first_token = 0;     // in the batch
  std::int32_t first_position = 0;  // in the sequence
  std::int32_t num_queries = 0;
};

// Tiles [first_tile, end_tile) for a unit's spans [first_span, end_span), whose tables agree there.
struct AttentionPass {
  std::int32_t first_span = 0;
  std::int32_t end_span = 0;
  std::int32_t first_tile = 0;
  std::int32_t end_tile = 0;
};

// Spans that meet their tiles together: passes in an order in which every span meets its own from
// first to last.
struct AttentionUnit {
  std::int32_t first_span = 0;
  std::int32_t end_span = 0;
  std::int32_t first_pass = 0;
  std::int32_t end_pass = 0;
  std::int32_t num_queries = 0;
  std::int32_t end_tile = 0;
  std::int64_t cost = 0;  // for one KV head
  std::int32_t num_tasks = 0;
  // Where tasks share the unit's tiles: its first partial result [part][row of all KV heads]; else
  // -1.
  std::int64_t first_partial = -1;

  bool is_split() const { return first_partial >= 0; }
  std::int32_t num_parts() const {
    return (end_tile + kAttentionPartTiles - 1) / kAttentionPartTiles;
  }
};

// What one thread computes in one go: tiles [first_tile, end_tile) of a unit, whole parts of it,
// for KV heads [first_head, end_head).
struct AttentionTask {
  std::int32_t unit = 0;
  std::int32_t first_head = 0;
  std::int32_t end_head = 0;
  std::int32_t first_tile = 0;
  std::int32_t end_tile = 0;
  std::int64_t cost = 0;
};

// How the attention of one batch is split into tasks, the most expensive first. Sequences whose
// tables begin with the same blocks are laid side by side, and a tile that several hold is read
// once for all of them. Built once a step: it is the same for every layer.
class PAGEDCORE_API AttentionPlan {
 public:
  // Forgets the batch of the last step.
  void reset() { is_ready_ = false; }
  // Makes the plan of `batch` unless it is there.
  void prepare(const ForwardBatch& batch, const PagedAttentionParams& params, int num_threads);

  const AttentionSpan* spans() const { return spans_.data(); }
  const AttentionPass* passes() const { return passes_.data(); }
  const AttentionUnit* units() const { return units_.data(); }
  std::int64_t num_units() const { return static_cast<std::int64_t>(units_.size()); }
  const AttentionTask* tasks() const { return tasks_.data(); }
  std::int64_t num_tasks() const { return static_cast<std::int64_t>(tasks_.size()); }
  // The most rows, queries times query heads, that one task has.
  std::int32_t max_task_rows() const { return max_task_rows_; }
  // Results of one part for one row that tasks leave to the last one of their unit.
  std::int64_t num_partials() const { return num_partials_; }
  // Tiles that are read from the cache for one KV head of one layer.
  std::int64_t num_tiles_read() const;

 private:
  struct Layout;

  void add_spans(const Layout& layout);
  void add_units(const Layout& layout, int num_threads);
  void add_passes(std::int32_t first_span, std::int32_t end_span, std::int32_t first_tile);
  void add_unit(std::int32_t first_span, std::int32_t end_span);
  void add_tasks(const Layout& layout, int num_threads);
  void add_tasks_of_unit(const Layout& layout, std::int32_t index, std::int64_t wanted);

  bool is_ready_ = false;
  std::int32_t max_task_rows_ = 0;
  std::int64_t num_partials_ = 0;
  std::vector<AttentionSpan> spans_;
  std::vector<std::int32_t> shared_tiles_;  // of each span with the one before
  std::vector<AttentionPass> passes_;
  std::vector<AttentionUnit> units_;
  std::vector<AttentionTask> tasks_;
};

}  // namespace pagedcore::cpu
