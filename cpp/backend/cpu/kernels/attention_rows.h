#pragma once

#include "cpp/backend/cpu/kernels/any.h"
#include "cpp/backend/cpu/kernels/attention_scratch.h"

// The rows of a task: how queries become rows, and the softmaxes of rows outputs.
namespace pagedcore::cpu::PAGEDCORE_ISA {

inline constexpr float kMinusInfinity = -__builtin_inff();
inline constexpr float kLog2E = 1.44269504f;

// One row a query and query head, in order of KV head, span, query, query head. Its softmax is
// made in parts, of which the last one is open to tiles and the others are joined to its total, or
// kept for the last task of a split unit to join.
template <typename Element>
class TaskRows {
 public:
  // The rows' arrays are those of `scratch`, which outlives this.
  TaskRows(const AttentionJob& job, const AttentionPartials& partials,
           const AttentionScratch<Element>& scratch)
      : job_(job), partials_(partials), scratch_(scratch) {}

  // Scales the queries so that their products are exponents of 2, and empties the softmaxes.
  [[gnu::noinline]] void start(const AttentionTask& task) {
    task_ = task;
    unit_ = job_.plan.units()[task.unit];
    head_rows_ = unit_.num_queries * job_.group;
    const PagedAttentionParams& p = job_.params;
    const Vec scale = splat(p.softcap != 0.0f ? p.scale / p.softcap : p.scale * kLog2E);
    for_each_row([&](int row, std::int32_t position, std::int64_t from) {
      Element* to = scratch_.query + row * job_.width;
      for_each_vector(job_.head_dim, [&](std::int64_t i, int n) {
        store(to + i, load_any(p.query_dtype, p.query, from + i, n) * scale);
      });
      scratch_.position[row] = position;
      start_total(row);
      start_part(row);
      if (!unit_.is_split()) return;
      for (int tile = task.first_tile; tile < task.end_tile; tile += kPartTiles) {
        partials_.largest[partial(row, tile / kPartTiles)] = kMinusInfinity;
      }
    });
  }

  int first_of_head(std::int32_t kv_head) const {
    return (kv_head - task_.first_head) * head_rows_;
  }

  // In the unit's first KV head.
  int first_of_span(std::int32_t span) const {
    int row = 0;
    for (std::int32_t s = unit_.first_span; s < span; ++s) {
      row += job_.plan.spans()[s].num_queries * job_.group;
    }
    return row;
  }

  // Ends the parts of rows [begin, end), which have met all their tiles before `tile`, and starts
  // new ones.
  [[gnu::noinline]] void close_parts(int begin, int end, int tile) {
    for (int row = begin; row < end; ++row) close_part(row, (tile - 1) / kPartTiles);
  }

  // Writes the output, for all tasks of a split unit if this is the last one.
  [[gnu::noinline]] void finish() {
    const int end = first_of_head(task_.end_head);
    for (int row = 0; row < end; ++row) {
      const int last = scratch_.position[row] / kTile;
      close_part(row, (last < task_.end_tile ? last : task_.end_tile - 1) / kPartTiles);
    }
    if (!unit_.is_split()) {
      write();
    } else if (__atomic_sub_fetch(partials_.tasks_left + task_.unit, 1, __ATOMIC_ACQ_REL) == 0) {
      join_unit();
    }
  }

 private:
  void write() {
    const PagedAttentionParams& p = job_.params;
    for_each_row([&](int row, std::int32_t, std::int64_t to) {
      const float* values = scratch_.total_values + row * job_.width;
      const Vec factor = splat(1.0f / scratch_.total_sum[row]);
      // Adding 0 turns -0, which a weight of 0 may or may not have made of a sum, into 0.
      for_each_vector(job_.head_dim, [&](std::int64_t i, int n) {
        store_any(p.out_dtype, p.out, to + i, fma(load(values + i), factor, zero()), n);
      });
    });
  }

  void join_unit() {
    for (std::int64_t head = 0; head < job_.params.cache.num_kv_heads; ++head) {
      task_.first_head = static_cast<std::int32_t>(head);
      task_.end_head = task_.first_head + 1;
      for (int row = 0; row < head_rows_; ++row) {
        start_total(row);
        for (int part = 0; part < unit_.num_parts(); ++part) {
          const std::int64_t at = partial(row, part);
          join(row, partials_.largest[at], partials_.sum[at], partials_.values + at * job_.width);
        }
      }
      write();
    }
  }

  // Calls f(row, position of the query, where the row starts in the query and the output).
  template <typename F>
  void for_each_row(F&& f) const {
    int row = 0;
    for (std::int64_t kv_head = task_.first_head; kv_head < task_.end_head; ++kv_head) {
      for (std::int32_t s = unit_.first_span; s < unit_.end_span; ++s) {
        const AttentionSpan& span = job_.plan.spans()[s];
        for (std::int32_t query = 0; query < span.num_queries; ++query) {
          const std::int64_t token = span.first_token + query;
          std::int64_t head = token * job_.params.num_heads + kv_head * job_.group;
          for (int i = 0; i < job_.group; ++i, ++head, ++row) {
            f(row, span.first_position + query, head * job_.head_dim);
          }
        }
      }
    }
  }

  void clear(float* values) const {
    for (std::int64_t d = 0; d < job_.width; d += kLanes) store(values + d, zero());
  }

  void start_part(int row) {
    scratch_.part_largest[row] = kMinusInfinity;
    scratch_.part_sum[row] = 0.0f;
    clear(scratch_.part_values + row * job_.width);
  }

  void start_total(int row) {
    scratch_.total_largest[row] = kMinusInfinity;
    scratch_.total_sum[row] = 0.0f;
    clear(scratch_.total_values + row * job_.width);
  }

  // Of a split unit.
  std::int64_t partial(int row, int part) const {
    const std::int64_t rows = head_rows_ * job_.params.cache.num_kv_heads;
    return unit_.first_partial + part * rows + task_.first_head * head_rows_ + row;
  }

  void close_part(int row, int part) {
    const float largest = scratch_.part_largest[row];
    if (largest == kMinusInfinity) return;
    const float* values = scratch_.part_values + row * job_.width;
    if (unit_.is_split()) {
      const std::int64_t at = partial(row, part);
      float* kept = partials_.values + at * job_.width;
      for (std::int64_t d = 0; d < job_.width; d += kLanes) store(kept + d, load(values + d));
      partials_.largest[at] = largest;
      partials_.sum[at] = scratch_.part_sum[row];
    } else {
      join(row, largest, scratch_.part_sum[row], values);
    }
    start_part(row);
  }

  // Joins a part with its largest score, sum and values to the total.
  void join(int row, float part, float part_sum, const float* part_values) {
    if (part == kMinusInfinity) return;
    const float total = scratch_.total_largest[row];
    const float largest = part > total ? part : total;
    const Vec part_factor = exp2(splat(part - largest));
    const Vec total_factor = exp2(splat(total - largest));
    float* total_values = scratch_.total_values + row * job_.width;
    for (std::int64_t d = 0; d < job_.width; d += kLanes) {
      const Vec sum = load(total_values + d) * total_factor;
      store(total_values + d, fma(load(part_values + d), part_factor, sum));
    }
    scratch_.total_sum[row] =
        scratch_.total_sum[row] * first_lane(total_factor) + part_sum * first_lane(part_factor);
    scratch_.total_largest[row] = largest;
  }

  const AttentionJob& job_;
  const AttentionPartials& partials_;
  const AttentionScratch<Element>& scratch_;
  AttentionTask task_;
  AttentionUnit unit_;
  int head_rows_ = 0;  // of one KV head
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
