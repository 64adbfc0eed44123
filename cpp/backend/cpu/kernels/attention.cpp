#include "cpp/backend/cpu/kernels/any.h"
#include "cpp/backend/cpu/kernels/attention_tile.h"
#include "cpp/backend/cpu/kernels/kernels.h"

// Attention as a unit of the plan and a KV head at a time: the unit's query rows (its queries times
// the heads of the KV head) meet each tile of keys and values while it is packed in L1. Method:
// online softmax, Milakov & Gimelshein 2018; paged KV, Kwon et al. 2023, section 4.
namespace pagedcore::cpu::PAGEDCORE_ISA {
namespace {

// The softmax starts anew every so many tiles and joins what came before it: work on one sequence
// can be split there without changing a bit.
constexpr int kPartTiles = 4;
// Rows whose scores are held at a time.
constexpr int kScoreRows = 24;
constexpr float kMinusInfinity = -__builtin_inff();
constexpr float kLog2E = 1.44269504f;

constexpr std::int64_t round_up(std::int64_t n, std::int64_t step) {
  return (n + step - 1) / step * step;
}

// What every unit of one call shares.
struct Job {
  const ForwardBatch& batch;
  const PagedAttentionParams& params;
  const AttentionPlan& plan;
  std::int64_t head_dim;
  int group;    // query heads of a KV head
  int vectors;  // of a row of values
  int max_rows;
};

// One thread's arrays, carved from the workspace.
struct Scratch {
  float* query;            // [max_rows][head_dim rounded up to vectors]; bfloat16 for pairs
  float* keys;             // [head_dim][kTile]
  float* values;           // [kTile][vectors * kLanes]
  float* scores;           // [kScoreRows][kTile]
  float* weights;          // [kScoreRows][kTile]
  float* part_values;      // [max_rows][vectors * kLanes]
  float* total_values;     // same
  float* part_largest;     // [max_rows]
  float* part_sum;         // [max_rows]
  float* total_largest;    // [max_rows]
  float* total_sum;        // [max_rows]
  std::int32_t* position;  // [max_rows] of each row's query

  static std::int64_t bytes(const Job& job) {
    const std::int64_t width = job.vectors * kLanes;
    const std::int64_t rows = round_up(job.max_rows, 16);
    return 4 * (3 * rows * width + 2 * kTile * width + 2 * kScoreRows * kTile + 5 * rows);
  }

  Scratch(const Job& job, std::byte* memory) {
    const std::int64_t width = job.vectors * kLanes;
    const std::int64_t rows = round_up(job.max_rows, 16);
    auto* next = reinterpret_cast<float*>(memory);
    const auto take = [&](std::int64_t count) {
      float* taken = next;
      next += count;
      return taken;
    };
    query = take(rows * width);
    keys = take(kTile * width);
    values = take(kTile * width);
    scores = take(kScoreRows * kTile);
    weights = take(kScoreRows * kTile);
    part_values = take(rows * width);
    total_values = take(rows * width);
    part_largest = take(rows);
    part_sum = take(rows);
    total_largest = take(rows);
    total_sum = take(rows);
    position = reinterpret_cast<std::int32_t*>(take(rows));
  }
};

// T is the cache's element, O how it is multiplied.
template <typename T, typename O>
class UnitRunner {
 public:
  using Element = typename O::Element;

  UnitRunner(const Job& job, std::byte* memory)
      : job_(job), scratch_(job, memory), width_(job.vectors * kLanes) {
    query_ = reinterpret_cast<Element*>(scratch_.query);
    keys_ = reinterpret_cast<Element*>(scratch_.keys);
    values_ = reinterpret_cast<Element*>(scratch_.values);
    weights_ = reinterpret_cast<Element*>(scratch_.weights);
  }

  void run(const AttentionUnit& unit, std::int64_t kv_head) {
    kv_head_ = kv_head;
    first_span_ = unit.first_span;
    start_rows(unit);
    for (std::int32_t i = unit.first_pass; i < unit.end_pass; ++i) {
      run_pass(job_.plan.passes()[i]);
    }
    finish_rows(unit);
  }

 private:
  // Where row `row` of a span starts in the query and the output.
  std::int64_t row_offset(const AttentionSpan& span, int row) const {
    const std::int64_t token = span.first_token + row / job_.group;
    const std::int64_t head = kv_head_ * job_.group + row % job_.group;
    return (token * job_.params.num_heads + head) * job_.head_dim;
  }

  int first_row(std::int32_t span) const {
    int row = 0;
    for (std::int32_t s = first_span_; s < span; ++s) row += job_.plan.spans()[s].num_queries;
    return row * job_.group;
  }

  // Packs the queries, scaled so that their products are exponents of 2, and empties the softmaxes.
  void start_rows(const AttentionUnit& unit) {
    const PagedAttentionParams& p = job_.params;
    const Vec scale = splat(p.softcap != 0.0f ? p.scale / p.softcap : p.scale * kLog2E);
    int at = 0;
    for (std::int32_t s = unit.first_span; s < unit.end_span; ++s) {
      const AttentionSpan& span = job_.plan.spans()[s];
      for (int row = 0; row < span.num_queries * job_.group; ++row, ++at) {
        const std::int64_t from = row_offset(span, row);
        Element* to = query_ + at * width_;
        for_each_vector(job_.head_dim, [&](std::int64_t i, int n) {
          store(to + i, load_any(p.query_dtype, p.query, from + i, n) * scale);
        });
        scratch_.position[at] = span.first_position + row / job_.group;
        scratch_.total_largest[at] = kMinusInfinity;
        scratch_.total_sum[at] = 0.0f;
        clear(scratch_.total_values + at * width_);
        start_part(at);
      }
    }
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
    std::int32_t lowest = spans[pass.first_span].first_position;
    std::int32_t highest = 0;
    for (std::int32_t s = pass.first_span; s < pass.end_span; ++s) {
      const std::int32_t last = spans[s].first_position + spans[s].num_queries - 1;
      lowest = spans[s].first_position < lowest ? spans[s].first_position : lowest;
      highest = last > highest ? last : highest;
    }
    const std::int32_t oldest = window > 0 && lowest >= window ? lowest - window + 1 : 0;
    const std::int32_t seq = spans[pass.first_span].seq;
    for (std::int32_t tile = pass.first_tile; tile < pass.end_tile; ++tile) {
      if (tile % kPartTiles == 0 && tile > 0) join_parts(begin_row, end_row);
      const std::int32_t start = tile * kTile;
      if (start + kTile <= oldest) continue;
      const std::int32_t end = highest + 1 < start + kTile ? highest + 1 : start + kTile;
      pack_tile(seq, start, oldest > start ? oldest : start, end);
      run_tile(start, begin_row, end_row);
    }
  }

  // Packs positions [begin, end) of the tile at `start`; the rest is 0 and nothing there is read.
  void pack_tile(std::int32_t seq, std::int32_t start, std::int32_t begin, std::int32_t end) {
    const KvCacheView& cache = job_.params.cache;
    const ForwardBatch& batch = job_.batch;
    const BlockId* table = batch.block_tables + batch.table_rows[seq] * batch.table_stride;
    const T* layer = static_cast<const T*>(cache.data) + job_.params.layer * cache.layer_stride() +
                     kv_head_ * cache.head_stride();
    const auto block_size = static_cast<std::int32_t>(cache.block_size);
    const T* keys[kTile];
    const T* values[kTile];
    for (int i = 0; i < kTile; ++i) {
      const std::int32_t position = start + i;
      if (position < begin || position >= end) {
        keys[i] = values[i] = nullptr;
        continue;
      }
      const std::int32_t index = position / block_size;
      keys[i] = layer + table[index] * cache.block_stride() +
                (position - index * block_size) * job_.head_dim;
      values[i] = keys[i] + cache.kv_stride();
    }
    pack_keys(O{}, keys, job_.head_dim, keys_);
    pack_values(O{}, values, job_.head_dim, job_.vectors, values_);
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
    for (int row = begin_row; row < end_row; row += kScoreRows) {
      run_rows(start, row, end_row - row < kScoreRows ? end_row - row : kScoreRows);
    }
  }

  void run_rows(std::int32_t start, int first, int rows) {
    const std::int64_t words = job_.head_dim / O::kPerWord;
    multiply<O>(rows, {query_ + first * width_, width_}, {keys_, kTile * O::kPerWord}, words,
                {scratch_.scores, kTile}, kTile / kLanes, false);
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
    multiply<O>(rows, {weights_, kTile}, {values_, width_ * O::kPerWord}, kTile / O::kPerWord,
                {scratch_.part_values + first * width_, width_}, job_.vectors, true);
  }

  // Joins the parts of rows [begin, end) to their totals and starts new ones.
  void join_parts(int begin, int end) {
    for (int row = begin; row < end; ++row) {
      const float part = scratch_.part_largest[row];
      if (part == kMinusInfinity) continue;
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
  }

  void finish_rows(const AttentionUnit& unit) {
    const PagedAttentionParams& p = job_.params;
    join_parts(0, first_row(unit.end_span));
    int at = 0;
    for (std::int32_t s = unit.first_span; s < unit.end_span; ++s) {
      const AttentionSpan& span = job_.plan.spans()[s];
      for (int row = 0; row < span.num_queries * job_.group; ++row, ++at) {
        const std::int64_t to = row_offset(span, row);
        const float* values = scratch_.total_values + at * width_;
        const Vec factor = splat(1.0f / scratch_.total_sum[at]);
        // Adding 0 turns -0, which a weight of 0 may or may not have made of a sum, into 0.
        for_each_vector(job_.head_dim, [&](std::int64_t i, int n) {
          store_any(p.out_dtype, p.out, to + i, fma(load(values + i), factor, zero()), n);
        });
      }
    }
  }

  const Job& job_;
  Scratch scratch_;
  const std::int64_t width_;
  Element* query_;
  Element* keys_;
  Element* values_;
  Element* weights_;
  std::int64_t kv_head_ = 0;
  std::int32_t first_span_ = 0;
};

// Threads take units as they get free, the most expensive first.
template <typename T, typename O>
void run_units(const Job& job, Context& context) {
  const std::int64_t bytes = round_up(Scratch::bytes(job), 64);
  std::byte* memory = context.workspace.reserve(bytes * context.pool.size());
  const std::int64_t kv_heads = job.params.cache.num_kv_heads;
  const std::int64_t num_tasks = job.plan.num_units() * kv_heads;
  std::int64_t next = 0;
  context.pool.run([&](int thread) {
    UnitRunner<T, O> runner(job, memory + thread * bytes);
    while (true) {
      const std::int64_t task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (task >= num_tasks) break;
      runner.run(job.plan.units()[task / kv_heads], task % kv_heads);
    }
  });
}

// How keys and values in bfloat16 are multiplied.
template <bool kHasDot>
struct Bf16Operands {
  using Type = FloatOperands;
};
template <>
struct Bf16Operands<true> {
  using Type = PairOperands<Bf16Dot>;
};

}  // namespace

void paged_attention(const ForwardBatch& batch, const PagedAttentionParams& params,
                     Context& context) {
  context.attention_plan.prepare(batch, params);
  Job job{batch, params, context.attention_plan, params.cache.head_dim, 0, 0, 0};
  job.group = static_cast<int>(params.num_heads / params.cache.num_kv_heads);
  job.vectors = static_cast<int>((job.head_dim + kLanes - 1) / kLanes);
  job.max_rows = job.plan.max_unit_queries() * job.group;
  switch (params.cache.dtype) {
    case DType::kBFloat16:
      return run_units<BFloat16, Bf16Operands<kHasBf16Dot>::Type>(job, context);
    case DType::kFloat16:
      return run_units<Float16, FloatOperands>(job, context);
    default:
      return run_units<float, FloatOperands>(job, context);
  }
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
