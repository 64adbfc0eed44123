#include "cpp/backend/cpu/kernels/attention_rows.h"
#include "cpp/backend/cpu/kernels/attention_tile.h"
#include "cpp/backend/cpu/kernels/kernels.h"

// Attention, a task of the plan at a time: all rows of the task (its queries times the query heads
// of a KV head) meet each tile of keys and values while it lies in L1. Method: online softmax,
// Milakov & Gimelshein 2018; paged KV, Kwon et al. 2023, section 4.
namespace pagedcore::cpu::PAGEDCORE_ISA {
namespace {

// O: how keys and values are multiplied.
template <typename O>
class TaskRunner {
 public:
  using Element = typename O::Element;

  TaskRunner(const AttentionJob& job, const AttentionPartials& partials, std::byte* memory)
      : job_(job), scratch_(job, memory), rows_(job, partials, scratch_) {
    const KvCacheView& cache = job.params.cache;
    const std::int64_t bits = dtype_bits(cache.dtype);
    head_bytes_ = cache.head_stride() * bits / 8;
    kv_bytes_ = cache.kv_stride() * bits / 8;
    layer_ = static_cast<const std::byte*>(cache.data) +
             job.params.layer * cache.layer_stride() * bits / 8;
    in_place_ = cache.dtype == O::kDType && cache.block_size >= 4;
    for (int i = 0; i < kTile / 4; ++i) copied_quads_[i] = 4 * i * job.width * sizeof(Element);
  }

  // `after`: the task that this thread runs next, or null.
  void run(const AttentionTask& task, const AttentionTask* after) {
    task_ = task;
    const AttentionUnit& unit = job_.plan.units()[task.unit];
    rows_.start(task);
    const AttentionPass* passes = job_.plan.passes();
    for (std::int32_t i = unit.first_pass; i < unit.end_pass; ++i) {
      Ahead ahead;
      if (i + 1 < unit.end_pass) {
        ahead = {tiles_of(job_, task, passes[i + 1]), task.first_head};
      } else if (after != nullptr) {
        const AttentionUnit& next = job_.plan.units()[after->unit];
        ahead = {tiles_of(job_, *after, passes[next.first_pass]), after->first_head};
      }
      run_pass(passes[i], ahead);
    }
    rows_.finish();
  }

 private:
  // What this thread reads after a pass: nothing where it has no tiles.
  struct Ahead {
    PassTiles tiles;
    std::int32_t head = 0;
  };

  [[gnu::noinline]] void run_pass(const AttentionPass& pass, const Ahead& ahead) {
    const PassTiles tiles = tiles_of(job_, task_, pass);
    if (tiles.empty()) return;
    const int begin = rows_.first_of_span(pass.first_span);
    const int end = rows_.first_of_span(pass.end_span);
    const int end_panels = begin + num_panel_rows(end - begin);
    if (begin == end_panels) {
      walk(tiles, task_.first_head, task_.end_head, ahead, [&](std::int32_t index, int head) {
        const int first = rows_.first_of_head(head);
        if (index % kPartTiles == 0) rows_.close_parts(first + begin, first + end, index);
        run_few_rows(first + begin, first + end);
      });
      return;
    }
    for (std::int32_t head = task_.first_head; head < task_.end_head; ++head) {
      const int first = rows_.first_of_head(head);
      const bool last = head + 1 == task_.end_head;
      lay_queries(first + begin, first + end_panels);
      walk(tiles, head, head + 1, last ? ahead : Ahead{tiles, head + 1},
           [&](std::int32_t index, int) {
             const bool starts_part = index % kPartTiles == 0;
             if (starts_part && index > tiles.first) close_panels();
             if (starts_part) rows_.close_parts(first + begin, first + end, index);
             if (starts_part || index == tiles.first) open_panels(starts_part);
             run_panels(end_panels == end);
             run_few_rows(first + end_panels, first + end);
           });
      close_panels();
    }
  }

  // Calls f(index of the tile, KV head) for every tile of a pass and heads [first_head, end_head),
  // with the rows of its keys and values.
  template <typename F>
  void walk(const PassTiles& tiles, std::int32_t first_head, std::int32_t end_head,
            const Ahead& ahead, F&& f) {
    locate(job_, tiles, tiles.first, &tile_);
    for (std::int32_t index = tiles.first; index < tiles.end; ++index) {
      std::int32_t next_head = first_head;
      if (index + 1 < tiles.end) {
        locate(job_, tiles, index + 1, &next_);
      } else if (!ahead.tiles.empty()) {
        locate(job_, ahead.tiles, ahead.tiles.first, &next_);
        next_head = ahead.head;
      } else {
        next_ = tile_;
      }
      for (std::int32_t head = first_head; head < end_head; ++head) {
        const bool goes_on = head + 1 == end_head;
        find_rows(head, goes_on ? next_ : tile_, goes_on ? next_head : head + 1);
        f(index, head);
      }
      tile_ = next_;
    }
  }

  // One KV head of this tile, and what comes next.
  [[gnu::noinline]] void find_rows(std::int32_t head, const Tile& next, std::int32_t next_head) {
    const std::byte* key = layer_ + head * head_bytes_;
    const std::byte* next_key = layer_ + next_head * head_bytes_;
    if (in_place_) {
      keys_ = {key, tile_.quads, job_.row_bytes, next_key, next.quads};
      values_ = {key + kv_bytes_, tile_.quads, job_.row_bytes, next_key + kv_bytes_, next.quads};
      return;
    }
    copy_rows(job_, key, tile_, next_key, next, scratch_.keys);
    copy_rows(job_, key + kv_bytes_, tile_, next_key + kv_bytes_, next, scratch_.values);
    keys_ = rows_of_copy(scratch_.keys);
    values_ = rows_of_copy(scratch_.values);
  }

  TileRows rows_of_copy(const Element* copy) const {
    const auto* bytes = reinterpret_cast<const std::byte*>(copy);
    const auto stride = job_.width * static_cast<std::int64_t>(sizeof(Element));
    return {bytes, copied_quads_, stride, bytes, copied_quads_};
  }

  // Positions of the tile that a query at `position` sees: [begin, end) from its start on.
  void visible(std::int32_t position, int* begin, int* end) const {
    const std::int32_t window = job_.params.sliding_window;
    const std::int32_t oldest = window > 0 ? position - window + 1 - tile_.start : 0;
    const std::int32_t newest = position - tile_.start;
    *begin = oldest > 0 ? oldest : 0;
    *end = newest + 1 < kTile ? newest + 1 : kTile;
  }

  bool sees(int row) const {
    int begin = 0;
    int end = 0;
    visible(scratch_.position[row], &begin, &end);
    return begin < end;
  }

  [[gnu::noinline]] void run_few_rows(int begin, int end) {
    while (begin < end && !sees(begin)) ++begin;
    while (begin < end && !sees(end - 1)) --end;
    for (int row = begin; row < end; row += kFewRows) {
      switch (end - row) {
        case 1:
          run_rows<1>(row);
          break;
        case 2:
          run_rows<2>(row);
          break;
        case 3:
          run_rows<3>(row);
          break;
        default:
          run_rows<kFewRows>(row);
      }
    }
  }

  // R rows from `row` on.
  template <int R>
  void run_rows(int row) {
    const std::int64_t width = job_.width;
    score_rows<O, R>({scratch_.query + row * width, width}, keys_, tile_.begin, tile_.end,
                     job_.head_dim, scratch_.scores);
    for (int r = 0; r < R; ++r) weigh_row_of_tile(row + r, r);
    add_values<O, R>(scratch_.weights, values_, tile_.begin, tile_.end, job_.head_dim,
                     {scratch_.part_values + row * width, width});
  }

  void weigh_row_of_tile(int row, int i) {
    Element* weights = scratch_.weights + i * kTile;
    int begin = 0;
    int end = 0;
    visible(scratch_.position[row], &begin, &end);
    if (begin >= end) {
      for (int k = 0; k < kTile; k += kLanes) store(weights + k, zero());
      return;
    }
    const RowSoftmax softmax{scratch_.part_largest + row, scratch_.part_sum + row,
                             scratch_.part_values + row * job_.width};
    weigh_row<O>(scratch_.scores + i * kTile, begin, end, job_.params.softcap * kLog2E, job_.width,
                 softmax, weights);
  }

  // Makes panels of the queries of rows [begin, end).
  void lay_queries(int begin, int end) {
    first_panel_row_ = begin;
    num_panel_rows_ = end - begin;
    const std::int64_t units = job_.width / O::kPerWord;
    for (int i = 0; i < num_panel_rows_; i += kLanes) {
      const int row = begin + i;
      to_panel(reinterpret_cast<const float*>(scratch_.query + row * job_.width), units, units,
               reinterpret_cast<float*>(scratch_.query_panels + i * job_.width));
      // Lanes behind the last row see what it sees.
      for (int j = row; j < row + kLanes; ++j) {
        scratch_.panel_position[j - begin] =
            static_cast<float>(scratch_.position[j < end ? j : end - 1]);
      }
    }
  }

  // Makes panels of these rows' values, 0 where a part starts; close_panels() takes back what has
  // become of them.
  void open_panels(bool starts_part) {
    for (int i = 0; i < num_panel_rows_; i += kLanes) {
      float* panel = scratch_.value_panels + i * job_.width;
      if (starts_part) {
        for (std::int64_t d = 0; d < job_.width; ++d) store(panel + d * kLanes, zero());
      } else {
        to_panel(scratch_.part_values + (first_panel_row_ + i) * job_.width, job_.width, job_.width,
                 panel);
      }
    }
  }

  void close_panels() {
    for (int i = 0; i < num_panel_rows_; i += kLanes) {
      const int left = num_panel_rows_ - i;
      from_panel(scratch_.value_panels + i * job_.width, job_.width,
                 scratch_.part_values + (first_panel_row_ + i) * job_.width, job_.width,
                 left < kLanes ? left : kLanes);
    }
  }

  // `fetches`: the next tile; a few rows fetch it themselves.
  [[gnu::noinline]] void run_panels(bool fetches) {
    int begin = 0;
    int end = num_panel_rows_;
    while (begin < end && !sees(first_panel_row_ + begin)) ++begin;
    while (begin < end && !sees(first_panel_row_ + end - 1)) --end;
    if (begin == end) return;
    pack_values<O>(values_, tile_.begin, tile_.end, job_.head_dim, job_.width,
                   scratch_.value_words);
    int panel = begin / kLanes;
    const int first = panel;
    const int end_panel = (end + kLanes - 1) / kLanes;
    while (panel < end_panel) {
      with_panels(end_panel - panel, [&](auto count) {
        run_panel_group<count.value>(panel, fetches && panel == first);
        panel += count.value;
      });
    }
  }

  // V panels from `panel` on.
  template <int V>
  void run_panel_group(int panel, bool fetches) {
    const std::int64_t width = job_.width;
    const std::int64_t size = width * kLanes;
    constexpr int kKeys = keys_of_block(V);
    const Element* rows[kKeys];
    const Panels<const Element> query{scratch_.query_panels + panel * size, size};
    for (int k = tile_.begin / kKeys * kKeys; k < tile_.end; k += kKeys) {
      for (int r = 0; r < kKeys; ++r) rows[r] = keys_.row<Element>(k + r);
      for (int r = 0; fetches && r < kKeys; r += 4) prefetch_next(k + r);
      multiply_panels<O, V>(rows, O::kPerWord, query, job_.head_dim / O::kPerWord,
                            {scratch_.scores + k * kLanes, kTile * kLanes}, false);
    }
    for (int v = 0; v < V; ++v) weigh_panel_of_tile(panel + v, v);
    const int begin = tile_.begin / O::kPerWord * O::kPerWord;
    const std::int64_t words = (tile_.end - begin + O::kPerWord - 1) / O::kPerWord;
    const Panels<const Element> weights{scratch_.weights + begin * kLanes, kTile * kLanes};
    for (std::int64_t d = 0; d < job_.head_dim; d += kKeys) {
      for (int r = 0; r < kKeys; ++r) {
        rows[r] = scratch_.value_words + begin * width + (d + r) * O::kPerWord;
      }
      multiply_panels<O, V>(rows, width * O::kPerWord, weights, words,
                            {scratch_.value_panels + panel * size + d * kLanes, size}, true);
    }
  }

  void prefetch_next(int position) const {
    const std::byte* key = keys_.next + keys_.next_quads[position / 4];
    const std::byte* value = values_.next + values_.next_quads[position / 4];
    for (std::int64_t at = 0; at < 4 * keys_.stride; at += kLineBytes) {
      prefetch_l2(key + at);
      prefetch_l2(value + at);
    }
  }

  void weigh_panel_of_tile(int panel, int i) {
    const int at = panel * kLanes;
    const int row = first_panel_row_ + at;
    const int rows = num_panel_rows_ - at < kLanes ? num_panel_rows_ - at : kLanes;
    const Vec position = load(scratch_.panel_position + at) - splat(tile_.start);
    const float window = static_cast<float>(job_.params.sliding_window);
    PanelSight sight;
    sight.begin = window > 0.0f ? position - splat(window - 1.0f) : zero();
    sight.end = position + splat(1.0f);
    sight.all = max_lane(zero() - sight.end) <= -kTile && max_lane(sight.begin) <= 0.0f;
    Vec largest = load(scratch_.part_largest + row);
    Vec sum = load(scratch_.part_sum + row);
    weigh_panel<O>(scratch_.scores + i * (kTile * kLanes), sight, job_.params.softcap * kLog2E,
                   job_.width,
                   {&largest, &sum, scratch_.value_panels + panel * kLanes * job_.width},
                   scratch_.weights + i * (kTile * kLanes));
    store_n(scratch_.part_largest + row, largest, rows);
    store_n(scratch_.part_sum + row, sum, rows);
  }

  const AttentionJob& job_;
  const AttentionScratch<Element> scratch_;
  TaskRows<Element> rows_;
  std::int64_t head_bytes_;
  std::int64_t kv_bytes_;
  const std::byte* layer_;
  bool in_place_;  // the cache is made of Elements, and quads of keys lie in one block
  std::int64_t copied_quads_[kTile / 4];  // of rows that do not stay in the cache
  Tile tile_;
  Tile next_;
  TileRows keys_;
  TileRows values_;
  AttentionTask task_;
  int first_panel_row_ = 0;
  int num_panel_rows_ = 0;
};

// Threads take tasks as they get free, the most expensive first.
template <typename O>
void run_tasks(const AttentionJob& job, Context& context) {
  const std::int64_t bytes = AttentionScratch<typename O::Element>::bytes(job);
  const std::int64_t threads_bytes = bytes * context.pool.size();
  std::byte* memory = context.workspace.reserve(threads_bytes + AttentionPartials::bytes(job));
  const AttentionPartials partials(job, memory + threads_bytes);
  for (std::int64_t i = 0; i < job.plan.num_units(); ++i) {
    partials.tasks_left[i] = job.plan.units()[i].num_tasks;
  }
  const std::int64_t num_tasks = job.plan.num_tasks();
  std::int64_t next = 0;
  context.pool.run([&](int thread) {
    TaskRunner<O> runner(job, partials, memory + thread * bytes);
    const auto take = [&]() -> const AttentionTask* {
      const std::int64_t task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      return task < num_tasks ? job.plan.tasks() + task : nullptr;
    };
    for (const AttentionTask* task = take(); task != nullptr;) {
      const AttentionTask* after = take();
      runner.run(*task, after);
      task = after;
    }
  });
}

// How keys and values in bfloat16 are multiplied.
template <bool kHasDot>
struct Bf16Words {
  using Type = FloatWords;
};
template <>
struct Bf16Words<true> {
  using Type = PairWords<Bf16Dot>;
};

}  // namespace

void paged_attention(const ForwardBatch& batch, const PagedAttentionParams& params,
                     Context& context) {
  AttentionPlan& plan = context.attention_plan;
  plan.prepare(batch, params, context.pool.size());
  const std::int64_t head_dim = params.cache.head_dim;
  const AttentionJob job{
      .batch = batch,
      .params = params,
      .plan = plan,
      .head_dim = head_dim,
      .width = round_up(head_dim, 2 * kLanes),
      .row_bytes = params.cache.row_stride() * dtype_bits(params.cache.dtype) / 8,
      .block_bytes = params.cache.block_bytes(),
      .block_shift = __builtin_ctzll(params.cache.block_size),
      .group = static_cast<int>(params.num_heads / params.cache.num_kv_heads),
  };
  if (params.cache.dtype == DType::kBFloat16 || params.cache.dtype == DType::kInt8) {
    run_tasks<Bf16Words<kHasBf16Dot>::Type>(job, context);
  } else {
    run_tasks<FloatWords>(job, context);
  }
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
