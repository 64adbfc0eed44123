#pragma once

#include <cstdint>
#include <vector>

#include "pagedcore/forward_batch.h"
#include "pagedcore/ops.h"

namespace pagedcore::cpu {

// Attention runs over tiles of this many positions, at multiples of it: a query's arithmetic has
// one order whatever the batch, the chunking and the block size. A multiple of every vector.
inline constexpr std::int32_t kAttentionTile = 64;

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

// What one thread computes in one go for each KV head: passes in an order in which every span
// meets its tiles from first to last.
struct AttentionUnit {
  std::int32_t first_span = 0;
  std::int32_t end_span = 0;
  std::int32_t first_pass = 0;
  std::int32_t end_pass = 0;
  std::int64_t cost = 0;
};

// How the attention of one batch is split into units, the most expensive first. Built once a step:
// it is the same for every layer.
class AttentionPlan {
 public:
  // Forgets the batch of the last step.
  void reset() { is_ready_ = false; }
  // Makes the plan of `batch` unless it is there.
  void prepare(const ForwardBatch& batch, const PagedAttentionParams& params);

  const AttentionSpan* spans() const { return spans_.data(); }
  const AttentionPass* passes() const { return passes_.data(); }
  const AttentionUnit* units() const { return units_.data(); }
  std::int32_t num_units() const { return static_cast<std::int32_t>(units_.size()); }
  // The most queries that the spans of one unit have together.
  std::int32_t max_unit_queries() const { return max_unit_queries_; }

 private:
  void add_unit(std::int32_t first_span, std::int32_t first_pass);

  bool is_ready_ = false;
  std::int32_t max_unit_queries_ = 0;
  std::vector<AttentionSpan> spans_;
  std::vector<AttentionPass> passes_;
  std::vector<AttentionUnit> units_;
};

}  // namespace pagedcore::cpu
