#include "cpp/backend/cpu/kernels/any.h"
#include "cpp/backend/cpu/kernels/attention_scratch.h"
#include "cpp/backend/cpu/kernels/attention_tile.h"
#include "cpp/backend/cpu/kernels/kernels.h"

// Attention, a task of the plan at a time: all rows of the task (its queries times the query heads
// of a KV head) meet each tile of keys and values while it lies packed in L1. Method: online
// softmax, Milakov & Gimelshein 2018; paged KV, Kwon et al. 2023, section 4.
namespace pagedcore::cpu::PAGEDCORE_ISA {
namespace {

// The softmax starts anew every so many tiles and joins what came before it: work on one sequence
// can be split there without changing a bit.
constexpr int kPartTiles = 4;
constexpr float kMinusInfinity = -__builtin_inff();
constexpr float kLog2E = 1.44269504f;

// Positions [begin, end) of the tile at `start`, and where each one's key lies in the first KV
// head: elements from the start of the layer in block 0. Others have the offset of the nearest.
struct Tile {
  std::int32_t start = 0;
  std::int32_t begin = 0;
  std::int32_t end = 0;
  std::int64_t offsets[kTile];
};

// The tiles of a pass: [first, end), and the positions [oldest, newest] that its queries see.
struct PassTiles {
  std::int32_t seq = 0;
  std::int32_t first = 0;
  std::int32_t end = 0;
  std::int32_t oldest = 0;
  std::int32_t newest = 0;
};

// T is the cache's element, O how it is multiplied.
template <typename T, typename O>
class TaskRunner {
 public:
  using Element = typename O::Element;

  TaskRunner(const AttentionJob& job, std::byte* memory)
      : job_(job), scratch_(job, memory), width_(job.vectors * kLanes) {
    const KvCacheView& cache = job.params.cache;
    layer_ = static_cast<const T*>(cache.data) + job.params.layer * cache.layer_stride();
    query_ = reinterpret_cast<Element*>(scratch_.query);
    keys_ = reinterpret_cast<Element*>(scratch_.keys);
    values_ = reinterpret_cast<Element*>(scratch_.values);
    weights_ = reinterpret_cast<Element*>(scratch_.weights);
  }

  // `after`: the task that this thread runs next, or null.
  void run(const AttentionTask& task, const AttentionTask* after) {
    task_ = task;
    unit_ = job_.plan.units()[task.unit];
    head_rows_ = unit_.num_queries * job_.group;
    start_rows();
    for (std::int32_t i = unit_.first_pass; i < unit_.end_pass; ++i) {
      const AttentionPass* passes = job_.plan.passes();
      if (i + 1 < unit_.end_pass) {
        run_pass(passes[i], passes + i + 1, task.first_head);
      } else if (after != nullptr) {
        run_pass(passes[i], passes + job_.plan.units()[after->unit].first_pass, after->first_head);
      } else {
        run_pass(passes[i], nullptr, task.first_head);
      }
    }
    finish_rows();
  }

 private:
  // Rows are in order of KV head, span, query, query head. Calls f(row, position of the query,
  // where the row starts in the query and the output) for each.
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

  // The first row of a span in the unit's first KV head.
  int first_row(std::int32_t span) const {
    int row = 0;
    for (std::int32_t s = unit_.first_span; s < span; ++s) {
      row += job_.plan.spans()[s].num_queries * job_.group;
    }
    return row;
  }

  // Packs the queries, scaled so that their products are exponents of 2, and empties the softmaxes.
  void start_rows() {
    const PagedAttentionParams& p = job_.params;
    const Vec scale = splat(p.softcap != 0.0f ? p.scale / p.softcap : p.scale * kLog2E);
    for_each_row([&](int row, std::int32_t position, std::int64_t from) {
      Element* to = query_ + row * width_;
      for_each_vector(job_.head_dim, [&](std::int64_t i, int n) {
        store(to + i, load_any(p.query_dtype, p.query, from + i, n) * scale);
      });
      scratch_.position[row] = position;
      scratch_.total_largest[row] = kMinusInfinity;
      scratch_.total_sum[row] = 0.0f;
      clear(scratch_.total_values + row * width_);
      start_part(row);
    });
  }

  void clear(float* values) const {
    for (int v = 0; v < job_.vectors; ++v) store(values + v * kLanes, zero());
  }

  void start_part(int row) {
    scratch_.part_largest[row] = kMinusInfinity;
    scratch_.part_sum[row] = 0.0f;
    clear(scratch_.part_values + row * width_);
  }

  PassTiles tiles_of(const AttentionPass& pass) const {
    const AttentionSpan* spans = job_.plan.spans();
    const std::int32_t window = job_.params.sliding_window;
    PassTiles tiles;
    tiles.seq = spans[pass.first_span].seq;
    tiles.oldest = spans[pass.first_span].first_position;
    for (std::int32_t s = pass.first_span; s < pass.end_span; ++s) {
      const std::int32_t first = spans[s].first_position;
      const std::int32_t last = first + spans[s].num_queries - 1;
      if (first < tiles.oldest) tiles.oldest = first;
      if (last > tiles.newest) tiles.newest = last;
    }
    tiles.oldest = window > 0 && tiles.oldest >= window ? tiles.oldest - window + 1 : 0;
    // Of spans that skip tiles here none has met a tile before.
    const std::int32_t seen = tiles.oldest / kTile;
    tiles.first = pass.first_tile > seen ? pass.first_tile : seen;
    tiles.end = pass.end_tile;
    return tiles;
  }

  // `after` is the pass that this thread runs next, from KV head `after_head` on, or null.
  void run_pass(const AttentionPass& pass, const AttentionPass* after, std::int32_t after_head) {
    const int begin_row = first_row(pass.first_span);
    const int end_row = first_row(pass.end_span);
    const PassTiles tiles = tiles_of(pass);
    if (tiles.first >= tiles.end) return;
    locate(tiles, tiles.first, &tile_);
    for (std::int32_t index = tiles.first; index < tiles.end; ++index) {
      if (index % kPartTiles == 0) join_parts(begin_row, end_row);
      const bool last = index + 1 == tiles.end;
      std::int32_t next_head = task_.first_head;
      if (!last) {
        locate(tiles, index + 1, &next_);
      } else if (after != nullptr) {
        const PassTiles after_tiles = tiles_of(*after);
        next_head = after_head;
        if (after_tiles.first < after_tiles.end) locate(after_tiles, after_tiles.first, &next_);
      } else {
        next_ = tile_;
      }
      for (std::int32_t head = task_.first_head; head < task_.end_head; ++head) {
        const bool goes_on = head + 1 == task_.end_head;
        find_rows(head, goes_on ? next_ : tile_, goes_on ? next_head : head + 1);
        const int first = (head - task_.first_head) * head_rows_;
        run_tile(first + begin_row, first + end_row);
      }
      tile_ = next_;
    }
  }

  // A tile of a pass. No table entry is read for positions that none of its queries sees.
  void locate(const PassTiles& tiles, std::int32_t index, Tile* tile) const {
    const KvCacheView& cache = job_.params.cache;
    const ForwardBatch& batch = job_.batch;
    const BlockId* table = batch.block_tables + batch.table_rows[tiles.seq] * batch.table_stride;
    const std::int32_t start = index * kTile;
    tile->start = start;
    tile->begin = tiles.oldest > start ? tiles.oldest - start : 0;
    tile->end = tiles.newest + 1 - start < kTile ? tiles.newest + 1 - start : kTile;
    for (int i = tile->begin; i < tile->end;) {
      const std::int32_t block = (start + i) >> job_.block_shift;
      const std::int32_t left = ((block + 1) << job_.block_shift) - start;
      const int end = left < tile->end ? left : tile->end;
      const std::int32_t slot = start + i - (block << job_.block_shift);
      std::int64_t offset = table[block] * cache.block_stride() + slot * job_.head_dim;
      for (; i < end; ++i, offset += job_.head_dim) tile->offsets[i] = offset;
    }
    for (int i = 0; i < tile->begin; ++i) tile->offsets[i] = tile->offsets[tile->begin];
    for (int i = tile->end; i < kTile; ++i) tile->offsets[i] = tile->offsets[tile->end - 1];
  }

  // One KV head of this tile, and what comes next.
  void find_rows(std::int32_t head, const Tile& next, std::int32_t next_head) {
    const KvCacheView& cache = job_.params.cache;
    const T* key = layer_ + head * cache.head_stride();
    const T* next_key = layer_ + next_head * cache.head_stride();
    key_rows_ = {key, tile_.offsets, next_key, next.offsets};
    value_rows_ = {key + cache.kv_stride(), tile_.offsets, next_key + cache.kv_stride(),
                   next.offsets};
  }

  // Positions of the tile at `start` that a query at `position` sees: [begin, end) from the tile
  // on.
  void visible(std::int32_t position, std::int32_t start, int* begin, int* end) const {
    const std::int32_t window = job_.params.sliding_window;
    const std::int32_t oldest = window > 0 ? position - window + 1 - start : 0;
    const std::int32_t newest = position - start;
    *begin = oldest > 0 ? oldest : 0;
    *end = newest + 1 < kTile ? newest + 1 : kTile;
  }

  void run_tile(int begin_row, int end_row) {
    const std::int32_t start = tile_.start;
    const auto sees = [&](int row) {
      int begin = 0;
      int end = 0;
      visible(scratch_.position[row], start, &begin, &end);
      return begin < end;
    };
    while (begin_row < end_row && !sees(begin_row)) ++begin_row;
    while (begin_row < end_row && !sees(end_row - 1)) --end_row;
    if (end_row - begin_row <= kMaxRows) {
      if (begin_row < end_row) run_few_rows(start, begin_row, end_row - begin_row);
      return;
    }
    pack_keys<O>(key_rows_, job_.head_dim, keys_);
    pack_values<O>(value_rows_, job_.head_dim, job_.vectors, values_);
    for (int row = begin_row; row < end_row; row += kScoreRows) {
      run_rows(start, row, end_row - row < kScoreRows ? end_row - row : kScoreRows);
    }
  }

  void run_rows(std::int32_t start, int first, int rows) {
    const std::int64_t words = job_.head_dim / O::kPerWord;
    multiply<O>(rows, {query_ + first * width_, width_}, {keys_, kTile * O::kPerWord}, words,
                {scratch_.scores, kTile}, kTile / kLanes, false);
    weigh_scores(start, first, rows);
    multiply<O>(rows, {weights_, kTile}, {values_, width_ * O::kPerWord}, kTile / O::kPerWord,
                {scratch_.part_values + first * width_, width_}, job_.vectors, true);
  }

  // The same for rows <= kMaxRows, from keys and values where they lie.
  void run_few_rows(std::int32_t start, int first, int rows) {
    with_rows(rows, [&](auto count) {
      score_rows<O, count.value>({query_ + first * width_, width_}, key_rows_, tile_.begin,
                                 tile_.end, job_.head_dim, scratch_.scores);
    });
    weigh_scores(start, first, rows);
    const Matrix<float> sums{scratch_.part_values + first * width_, width_};
    const auto add = [&](auto vectors, int v) {
      with_rows(rows, [&](auto count) {
        add_values<O, count.value, vectors.value>(weights_, value_rows_, tile_.begin, tile_.end,
                                                  v * kLanes, job_.head_dim, sums);
      });
    };
    int v = 0;
    for (; v + kMaxVectors <= job_.vectors; v += kMaxVectors) add(Constant<kMaxVectors>{}, v);
    if (v + 2 <= job_.vectors) {
      add(Constant<2>{}, v);
      v += 2;
    }
    if (v < job_.vectors) add(Constant<1>{}, v);
  }

  void weigh_scores(std::int32_t start, int first, int rows) {
    const float softcap = job_.params.softcap * kLog2E;
    for (int i = 0; i < rows; ++i) {
      const int row = first + i;
      Element* weights = weights_ + i * kTile;
      int begin = 0;
      int end = 0;
      visible(scratch_.position[row], start, &begin, &end);
      if (begin >= end) {
        for (int k = 0; k < kTile; k += kLanes) store(weights + k, zero());
        continue;
      }
      const Softmax softmax{scratch_.part_largest + row, scratch_.part_sum + row,
                            scratch_.part_values + row * width_};
      add_scores(scratch_.scores + i * kTile, begin, end, softcap, job_.vectors, softmax, weights);
    }
  }

  // Joins the parts of rows [begin, end) of every KV head to their totals and starts new ones.
  void join_parts(int begin, int end) {
    for (std::int32_t head = 0; head < task_.end_head - task_.first_head; ++head) {
      for (int row = begin; row < end; ++row) join_part(head * head_rows_ + row);
    }
  }

  void join_part(int row) {
    const float part = scratch_.part_largest[row];
    if (part == kMinusInfinity) return;
    const float total = scratch_.total_largest[row];
    const float largest = part > total ? part : total;
    const Vec part_factor = exp2(splat(part - largest));
    const Vec total_factor = exp2(splat(total - largest));
    float* part_values = scratch_.part_values + row * width_;
    float* total_values = scratch_.total_values + row * width_;
    for (int v = 0; v < job_.vectors; ++v) {
      const Vec sum = load(total_values + v * kLanes) * total_factor;
      store(total_values + v * kLanes, fma(load(part_values + v * kLanes), part_factor, sum));
    }
    scratch_.total_sum[row] = scratch_.total_sum[row] * first_lane(total_factor) +
                              scratch_.part_sum[row] * first_lane(part_factor);
    scratch_.total_largest[row] = largest;
    start_part(row);
  }

  void finish_rows() {
    const PagedAttentionParams& p = job_.params;
    join_parts(0, head_rows_);
    for_each_row([&](int row, std::int32_t, std::int64_t to) {
      const float* values = scratch_.total_values + row * width_;
      const Vec factor = splat(1.0f / scratch_.total_sum[row]);
      // Adding 0 turns -0, which a weight of 0 may or may not have made of a sum, into 0.
      for_each_vector(job_.head_dim, [&](std::int64_t i, int n) {
        store_any(p.out_dtype, p.out, to + i, fma(load(values + i), factor, zero()), n);
      });
    });
  }

  const AttentionJob& job_;
  AttentionScratch scratch_;
  const std::int64_t width_;
  const T* layer_;
  Element* query_;
  Element* keys_;
  Element* values_;
  Element* weights_;
  Tile tile_;
  Tile next_;
  TileRows<T> key_rows_;
  TileRows<T> value_rows_;
  AttentionTask task_;
  AttentionUnit unit_;
  int head_rows_ = 0;  // rows of one KV head
};

// Threads take tasks as they get free, the most expensive first.
template <typename T, typename O>
void run_tasks(const AttentionJob& job, Context& context) {
  const std::int64_t bytes = round_up(AttentionScratch::bytes(job), 64);
  std::byte* memory = context.workspace.reserve(bytes * context.pool.size());
  const std::int64_t num_tasks = job.plan.num_tasks();
  std::int64_t next = 0;
  context.pool.run([&](int thread) {
    TaskRunner<T, O> runner(job, memory + thread * bytes);
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
struct Bf16Operands {
  using Type = FloatOperands<BFloat16>;
};
template <>
struct Bf16Operands<true> {
  using Type = PairOperands<Bf16Dot>;
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
      .block_shift = __builtin_ctzll(params.cache.block_size),
      .group = static_cast<int>(params.num_heads / params.cache.num_kv_heads),
      .vectors = static_cast<int>((head_dim + kLanes - 1) / kLanes),
  };
  switch (params.cache.dtype) {
    case DType::kBFloat16:
      return run_tasks<BFloat16, Bf16Operands<kHasBf16Dot>::Type>(job, context);
    case DType::kFloat16:
      return run_tasks<Float16, FloatOperands<Float16>>(job, context);
    default:
      return run_tasks<float, FloatOperands<float>>(job, context);
  }
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
