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

// Stands for rows that must not be read; as long as the longest head.
alignas(64) constexpr float kZeros[512] = {};

// Positions [begin, end) of the tile at `start`, and where each one's key lies in the first KV
// head: elements from the start of the layer in block 0.
struct Tile {
  std::int32_t start = 0;
  std::int32_t begin = 0;
  std::int32_t end = 0;
  std::int64_t offsets[kTile];
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

  void run(const AttentionTask& task) {
    task_ = task;
    unit_ = job_.plan.units()[task.unit];
    head_rows_ = unit_.num_queries * job_.group;
    start_rows();
    for (std::int32_t i = unit_.first_pass; i < unit_.end_pass; ++i) {
      run_pass(job_.plan.passes()[i]);
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

  void run_pass(const AttentionPass& pass) {
    const AttentionSpan* spans = job_.plan.spans();
    const std::int32_t window = job_.params.sliding_window;
    const int begin_row = first_row(pass.first_span);
    const int end_row = first_row(pass.end_span);
    std::int32_t oldest = spans[pass.first_span].first_position;
    std::int32_t newest = 0;
    for (std::int32_t s = pass.first_span; s < pass.end_span; ++s) {
      const std::int32_t last = spans[s].first_position + spans[s].num_queries - 1;
      oldest = spans[s].first_position < oldest ? spans[s].first_position : oldest;
      newest = last > newest ? last : newest;
    }
    oldest = window > 0 && oldest >= window ? oldest - window + 1 : 0;
    const std::int32_t seq = spans[pass.first_span].seq;
    // Of spans that skip tiles here none has met a tile before.
    const std::int32_t seen = oldest / kTile;
    std::int32_t index = pass.first_tile > seen ? pass.first_tile : seen;
    const std::int32_t num_heads = task_.end_head - task_.first_head;
    Tile tile;
    Tile next;
    locate(seq, index * kTile, oldest, newest + 1, &next);
    for (; index < pass.end_tile; ++index) {
      if (index % kPartTiles == 0) join_parts(begin_row, end_row);
      tile = next;
      if (index + 1 < pass.end_tile) locate(seq, (index + 1) * kTile, oldest, newest + 1, &next);
      for (std::int32_t head = 0; head < num_heads; ++head) {
        const bool is_last = head + 1 == num_heads;
        const bool goes_on = is_last && index + 1 < pass.end_tile;
        find_rows(tile, head, goes_on ? next : tile,
                  goes_on   ? 0
                  : is_last ? head
                            : head + 1,
                  &key_rows_, &value_rows_);
        run_tile(tile.start, head * head_rows_ + begin_row, head * head_rows_ + end_row);
      }
    }
  }

  // The tile at `start` of positions [begin, end). No table entry is read for others.
  void locate(std::int32_t seq, std::int32_t start, std::int32_t begin, std::int32_t end,
              Tile* tile) const {
    const KvCacheView& cache = job_.params.cache;
    const ForwardBatch& batch = job_.batch;
    const BlockId* table = batch.block_tables + batch.table_rows[seq] * batch.table_stride;
    tile->start = start;
    tile->begin = begin > start ? begin - start : 0;
    tile->end = end - start < kTile ? end - start : kTile;
    for (int i = tile->begin; i < tile->end; ++i) {
      const std::int32_t position = start + i;
      const std::int32_t block = position >> job_.block_shift;
      const std::int32_t offset = position - (block << job_.block_shift);
      tile->offsets[i] = table[block] * cache.block_stride() + offset * job_.head_dim;
    }
  }

  // One KV head of a tile, and of the tile that comes next; heads count from the task's first.
  void find_rows(const Tile& tile, std::int32_t head, const Tile& next, std::int32_t next_head,
                 TileRows<T>* keys, TileRows<T>* values) const {
    const KvCacheView& cache = job_.params.cache;
    const T* base = layer_ + (task_.first_head + head) * cache.head_stride();
    const T* next_base = layer_ + (task_.first_head + next_head) * cache.head_stride();
    const auto* zeros = reinterpret_cast<const T*>(kZeros);
    for (int i = 0; i < kTile; ++i) {
      const bool held = i >= tile.begin && i < tile.end;
      const bool next_held = i >= next.begin && i < next.end;
      keys->rows[i] = held ? base + tile.offsets[i] : zeros;
      values->rows[i] = held ? keys->rows[i] + cache.kv_stride() : zeros;
      keys->next[i] = next_base + next.offsets[next_held ? i : next.begin];
      values->next[i] = keys->next[i] + cache.kv_stride();
    }
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

  void run_tile(std::int32_t start, int begin_row, int end_row) {
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
      score_rows<O, count.value>({query_ + first * width_, width_}, key_rows_, job_.head_dim,
                                 scratch_.scores);
    });
    weigh_scores(start, first, rows);
    const Matrix<float> sums{scratch_.part_values + first * width_, width_};
    const auto add = [&](auto vectors, int v) {
      with_rows(rows, [&](auto count) {
        add_values<O, count.value, vectors.value>(weights_, value_rows_, v * kLanes, job_.head_dim,
                                                  sums);
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
    while (true) {
      const std::int64_t task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (task >= num_tasks) break;
      runner.run(job.plan.tasks()[task]);
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
