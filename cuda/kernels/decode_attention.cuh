#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/kernels/decode_tile.cuh"

namespace pagedcore::cuda {

// Decode attention: one query token a sequence, the query heads of a KV head packed into the rows
// of a tensor-core tile, so that K and V are read once.
//
// Grid (head tiles, items at once): thread blocks walk the step's items, each for one tile of up to
// kRows query heads of a KV head; as many are started as the device holds. Block: kWarps warps.
// Shared memory: a pipeline a warp (cp.async), deeper the fewer thread blocks share a processor;
// then what is merged. Tokens of earlier steps are fetched before the step's own are there.
//
// Item of one sequence: warp w takes the 16-token groups w, w + kWarps, ... of the split, its
// chain; then the chains are merged in order. The thread block that ends the last of a sequence's
// splits merges them, in order.
//
// Item of several: one chain of their common split, read once by the block for all of them; warp w
// computes the w'th tile of rows (sequence, head). A row's chain has the operations that it has
// alone, and so the same bits; its sums go to memory. The block of each sequence's last split,
// which stands behind them in the list, awaits and merges them.
//
// Bytes moved: K and V once an item. Method: online softmax, Milakov & Gimelshein 2018; split KV,
// FlashDecoding, Dao et al. 2023; common prefixes, Hydragen, Juravsky et al. 2024.
template <typename KV, int kHeadDim>
struct DecodeAttention {
  using Unit = DecodeTile<KV, kHeadDim>;
  using Row = typename Unit::Row;
  using State = typename Unit::State;
  static constexpr int kRows = Unit::kRows, kTokens = Unit::kTokens, kWarps = Unit::kWarps;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kRound = kWarps * kTokens;
  static constexpr int kStageBytes = Unit::kStageBytes;
  static constexpr int kMergeRow = kHeadDim + 8;  // floats; the eight spread rows over the banks
  static constexpr int kMergeBytes = kWarps * kRows * (8 + kMergeRow * 4);

  // Thread blocks that share a processor at most: one's loads run while another merges.
  static constexpr int kBlocksPerSm = kHeadDim <= 64 ? 4 : kHeadDim <= 128 ? 3 : 2;
  // Stages of a warp's pipeline where so many thread blocks share a processor.
  static constexpr int stages_for(int blocks) {
    constexpr int kProcessor = 221184, kOne = 163840, kMost = 10;  // bytes, bytes, stages
    const int bytes = kProcessor / blocks < kOne ? kProcessor / blocks : kOne;
    const int stages = bytes / kWarps / kStageBytes;
    return stages < kMost ? stages : kMost;
  }
  static constexpr int shared_bytes(int stages) {
    const int pipelines = kWarps * stages * kStageBytes;
    return pipelines > kMergeBytes ? pipelines : kMergeBytes;
  }
  static constexpr int kStages = stages_for(kBlocksPerSm);
  static_assert(kMaxSplits * kRows * (sizeof(float2) + sizeof(float4)) <= shared_bytes(kStages));
  static_assert(kStages >= 2);

  struct Work {
    DecodeItem item;
    std::int32_t first_head, num_heads;  // of the tile
    std::int32_t kv_head;
    std::int32_t size, split, chain;  // tokens of a split; which split; chain of an item of several
    std::int32_t start;               // first position that any row sees
    std::int32_t begin, end;          // tokens of the split, from the first that is seen
    std::int64_t first_offset;        // token_offset() of the warp's first group
    __device__ bool shared() const { return item.count > 0; }
    __device__ bool live() const { return end > begin && end > start && chain < kWarps; }
  };

  __device__ static DecodeMember load_member(const AttentionArgs& args, std::int32_t index) {
    const int4 raw = __ldg(reinterpret_cast<const int4*>(args.items) + index);
    return {raw.x, raw.y, raw.z, raw.w};
  }

  // The rows of sequences from the item's `first`'th; of one alone, those of the tile.
  __device__ static void find_rows(const AttentionArgs& args, const Work& work, std::int32_t first,
                                   Row (&rows)[2]) {
    const DecodeItem& item = work.item;
    const std::int32_t members = kRows / work.num_heads;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::int32_t row = static_cast<std::int32_t>(threadIdx.x % 32) / 4 + 8 * r;
      rows[r] = {};
      if (!work.shared()) {
        if (row < work.num_heads) rows[r] = {item.token, work.first_head + row, 0, work.start};
        continue;
      }
      const std::int32_t of = row / work.num_heads, member = first + of;
      if (of >= members || member >= item.count) continue;
      const DecodeMember m = load_member(args, item.first_member + member);
      const std::int32_t start = window_start(m.length - 1, args.op.sliding_window);
      rows[r] = {m.token, work.first_head + row % work.num_heads, m.first_slot + item.part, start};
    }
  }

  // Element offset of token `begin + lane` in the layer's K, or -1 where it must not be read.
  __device__ static std::int64_t token_offset(const AttentionArgs& args, const Work& work,
                                              std::int32_t begin, std::int32_t end) {
    const std::int32_t token = begin + static_cast<int>(threadIdx.x % kTokens);
    if (token < work.start || token >= end) return -1;
    const KvCacheView& c = args.op.cache;
    const int shift = __ffs(static_cast<int>(c.block_size)) - 1;
    const BlockId block = __ldg(args.batch.block_tables +
                                work.item.table_row * args.batch.table_stride + (token >> shift));
    return block * c.block_stride() + (token & (c.block_size - 1)) * kHeadDim;
  }

  // The warp's chain of a split alone, or the block's chain of a common split.
  template <bool kShared>
  __device__ static void walk(const AttentionArgs& args, const Work& work, const Row (&rows)[2],
                              bool any_row, int stages, char* shared, State& state) {
    const int depth = kShared ? kWarps * kStages : stages;
    const int warp_bytes = stages * kStageBytes;
    const PagedAttentionParams& p = args.op;
    const int warp = threadIdx.x / 32;
    const KV* k_base = static_cast<const KV*>(p.cache.data) + p.layer * p.cache.layer_stride() +
                       work.kv_head * p.cache.head_stride();
    std::uint32_t q[kHeadDim / 16][4];
    const auto stage_at = [&](int stage) {
      return shared + (kShared ? stage / kStages * warp_bytes + stage % kStages * kStageBytes
                               : warp * warp_bytes + stage * kStageBytes);
    };
    const auto await_oldest = [&] {
      if constexpr (kShared) {
        copy_wait<kWarps * kStages - 2>();
      } else if (stages == kStages) {
        copy_wait<kStages - 2>();
      } else if (stages == stages_for(2)) {
        copy_wait<stages_for(2) - 2>();
      } else {
        copy_wait<stages_for(1) - 2>();
      }
    };
    const auto sync = [] {
      if constexpr (kShared) {
        __syncthreads();
      } else {
        __syncwarp();
      }
    };
    const std::int32_t end = work.end;
    const std::int32_t all_start = kShared && p.sliding_window > 0 ? end : work.start;
    const bool blocks_hold_groups = p.cache.block_size >= kTokens;
    std::int32_t begin = work.begin + (kShared ? work.chain : warp) * kTokens, ahead = begin;
    std::int64_t offset = work.first_offset;
    const auto issue_next = [&](int stage) {
      if (ahead < end) {
        const bool whole = blocks_hold_groups && ahead >= work.start && ahead + kTokens <= end;
        Unit::template issue<kShared>(k_base, p.cache.kv_stride(), offset, whole,
                                      smem_address(stage_at(stage)));
        ahead += kRound;
        offset = token_offset(args, work, ahead, end);
      }
      copy_commit();
    };
    const auto take = [&](int stage) {
      if (!any_row) return;
      const std::uint32_t k_tile = smem_address(stage_at(stage));
      Unit::step(args, rows, all_start, begin, end, q, k_tile, k_tile + Unit::kTileBytes, state);
    };
#pragma unroll 1
    for (int stage = 0; stage < depth - 1; ++stage) {
      if (ahead + kTokens >= work.item.length) await_inputs();  // the step's own token
      issue_next(stage);
    }
    await_inputs();
    Unit::load_query(p, rows, q);
    for (int stage = 0; begin < end; begin += kRound) {
      await_oldest();
      sync();
      issue_next(stage == 0 ? depth - 1 : stage - 1);
      take(stage);
      stage = stage + 1 == depth ? 0 : stage + 1;
    }
    copy_wait<0>();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      state.sum[r] += __shfl_xor_sync(0xffffffffu, state.sum[r], 1);
      state.sum[r] += __shfl_xor_sync(0xffffffffu, state.sum[r], 2);
    }
  }

  // sum += part * factor, rounded once, wherever sums are merged.
  __device__ static void add_scaled(float4& sum, const float4& part, float factor) {
    sum.x = fmaf(part.x, factor, sum.x), sum.y = fmaf(part.y, factor, sum.y);
    sum.z = fmaf(part.z, factor, sum.z), sum.w = fmaf(part.w, factor, sum.w);
  }
  // Merges the maxima and sums of a split's chains; their outputs are to be added by `factor`.
  __device__ static float2 merge_chains(const float2 (&chains)[kWarps], float (&factor)[kWarps]) {
    float2 all = make_float2(kNegativeInfinity, 0.0f);
#pragma unroll
    for (int c = 0; c < kWarps; ++c) all.x = fmaxf(all.x, chains[c].x);
#pragma unroll
    for (int c = 0; c < kWarps; ++c) {
      factor[c] = exp2_approx(chains[c].x - all.x);
      all.y = fmaf(chains[c].y, factor[c], all.y);
    }
    return all;
  }
  __device__ static void store_out(const PagedAttentionParams& p, std::int64_t row, int element,
                                   const float4& o, float sum) {
    const float scale = p.cache.v_scale / sum;
    const std::int64_t at = row * kHeadDim + element;
    store2(p.out, p.out_dtype, at, o.x * scale, o.y * scale);
    store2(p.out, p.out_dtype, at + 2, o.z * scale, o.w * scale);
  }

  // How a sequence's sums are put together.
  struct Merge {
    std::int32_t first, num_splits;  // splits that are seen: [first, num_splits)
    std::int32_t num_sums;           // partial sums of them
    std::int64_t own_slot;           // slot of split s: own_slot + s, unless it is shared
  };
  __device__ static Merge plan_merge(const Work& work) {
    const DecodeItem& item = work.item;
    Merge m;
    m.first = work.start / work.size;
    m.num_splits = (item.length + work.size - 1) / work.size;
    m.num_sums =
        m.num_splits - max(m.first, item.num_shared) + kWarps * max(item.num_shared - m.first, 0);
    m.own_slot = item.first_slot + (kChains - 1) * item.num_shared;
    return m;
  }

  // Merges the warps' chains in order. Writes the output where the split is the only one, else the
  // partial sums. `shared` holds [warp][row] (max, sum), then [warp][row][kMergeRow].
  __device__ static void merge_warps(const AttentionArgs& args, const Work& work,
                                     const Merge& merge, char* shared, const State& state) {
    const PagedAttentionParams& p = args.op;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float2* max_sum = reinterpret_cast<float2*>(shared);
    float* out = reinterpret_cast<float*>(shared + kWarps * kRows * sizeof(float2));
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane / 4 + 8 * r;
      if (row >= work.num_heads) continue;
      if (lane % 4 == 0) max_sum[warp * kRows + row] = make_float2(state.max[r], state.sum[r]);
      Unit::store_row(state, r, out + (warp * kRows + row) * kMergeRow);
    }
    __syncthreads();
    for (int i = threadIdx.x * 4; i < work.num_heads * kHeadDim; i += kThreads * 4) {
      const int row = i / kHeadDim, element = i % kHeadDim;
      float2 chains[kWarps];
      float factor[kWarps];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) chains[w] = max_sum[w * kRows + row];
      const float2 all = merge_chains(chains, factor);
      float4 o = {};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float* from = out + (w * kRows + row) * kMergeRow + element;
        add_scaled(o, *reinterpret_cast<const float4*>(from), factor[w]);
      }
      const std::int64_t head = work.first_head + row;
      if (merge.num_sums == 1) {
        store_out(p, work.item.token * p.num_heads + head, element, o, all.y);
      } else {
        const std::int64_t at = (merge.own_slot + work.split) * p.num_heads + head;
        *reinterpret_cast<float4*>(args.partial_out + at * kHeadDim + element) = o;
        if (element == 0) args.partial_max_sum[at] = all;
      }
    }
  }

  // Says that a partial sum of the sequence is there; whether the thread block is to merge them,
  // all being there then.
  __device__ static bool arrive(const Work& work, const Merge& merge, std::uint32_t* arrivals) {
    __shared__ bool merges;
    __syncthreads();
    if (threadIdx.x == 0) {
      // Releases what the thread block wrote and acquires what the others did.
      const auto all = static_cast<std::uint32_t>(merge.num_sums);
      std::uint32_t there;
      asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                   : "=r"(there)
                   : "l"(arrivals)
                   : "memory");
      ++there;
      if (work.item.num_shared > 0 && work.split == merge.num_splits - 1) {
        while (there != all) {
          asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                       : "=r"(there)
                       : "l"(arrivals)
                       : "memory");
        }
        merges = true;
      } else {
        merges = work.item.num_shared == 0 && there == all;
      }
      if (merges) *arrivals = 0;
    }
    __syncthreads();
    return merges;
  }

  // Merges a sequence's splits in order. `shared` holds [split][row] (max, sum), then the factors
  // of the chains of those that are shared.
  __device__ static void merge_splits(const AttentionArgs& args, const Work& work,
                                      const Merge& merge, char* shared) {
    const PagedAttentionParams& p = args.op;
    float2* max_sum = reinterpret_cast<float2*>(shared);
    float* factors = reinterpret_cast<float*>(shared + kMaxSplits * kRows * sizeof(float2));
    const std::int64_t stride = p.num_heads;  // from slot to slot
    const auto sums_of = [&](std::int32_t split) {
      const bool is_shared = split < work.item.num_shared;
      const std::int64_t slot =
          is_shared ? work.item.first_slot + kChains * split : merge.own_slot + split;
      return slot * stride + work.first_head;
    };
    for (int i = threadIdx.x; i < (merge.num_splits - merge.first) * kRows; i += kThreads) {
      const std::int32_t split = merge.first + i / kRows;
      const float2* from =
          args.partial_max_sum + sums_of(split) + min(i % kRows, work.num_heads - 1);
      if (split < work.item.num_shared) {
        float2 chains[kWarps];
#pragma unroll
        for (int c = 0; c < kWarps; ++c) chains[c] = __ldcg(from + c * stride);
        float factor[kWarps];
        max_sum[i] = merge_chains(chains, factor);
#pragma unroll
        for (int c = 0; c < kWarps; ++c) factors[i * kWarps + c] = factor[c];
      } else {
        max_sum[i] = __ldcg(from);
      }
    }
    __syncthreads();
    for (int i = threadIdx.x * 4; i < work.num_heads * kHeadDim; i += kThreads * 4) {
      const int row = i / kHeadDim;
      const auto part = [&](std::int64_t slot_head) {
        return __ldcg(reinterpret_cast<const float4*>(args.partial_out + slot_head * kHeadDim + i));
      };
      float max_all = kNegativeInfinity, sum = 0.0f;
      for (std::int32_t s = merge.first; s < merge.num_splits; ++s) {
        max_all = fmaxf(max_all, max_sum[(s - merge.first) * kRows + row].x);
      }
      float4 o = {};
      const auto add = [&](int index, const float4& split_out) {
        const float factor = exp2_approx(max_sum[index].x - max_all);
        sum = fmaf(max_sum[index].y, factor, sum);
        add_scaled(o, split_out, factor);
      };
      std::int32_t s = merge.first;
#pragma unroll 2
      for (; s < work.item.num_shared; ++s) {
        const int index = (s - merge.first) * kRows + row;
        float4 split_out = {};
#pragma unroll
        for (int c = 0; c < kWarps; ++c) {
          add_scaled(split_out, part(sums_of(s) + c * stride), factors[index * kWarps + c]);
        }
        add(index, split_out);
      }
#pragma unroll 8
      for (; s < merge.num_splits; ++s) add((s - merge.first) * kRows + row, part(sums_of(s)));
      const std::int64_t head = work.first_head + row;
      store_out(p, work.item.token * p.num_heads + head, i % kHeadDim, o, sum);
    }
  }

  // The split of one sequence.
  __device__ static void finish(const AttentionArgs& args, const Work& work, char* shared,
                                const State& state) {
    const Merge merge = plan_merge(work);
    merge_warps(args, work, merge, shared, state);
    if (merge.num_sums > 1) {
      std::uint32_t* arrivals = args.arrivals + work.item.first_slot * gridDim.x + blockIdx.x;
      if (arrive(work, merge, arrivals)) merge_splits(args, work, merge, shared);
    }
    __syncthreads();
  }

  // A chain of a split that several sequences hold: as many of them at once as the warps have rows.
  __device__ static void run_shared(const AttentionArgs& args, const Work& work, int stages,
                                    char* shared) {
    const std::int32_t members = kRows / work.num_heads;
    for (std::int32_t first = 0; first < work.item.count; first += kWarps * members) {
      const std::int32_t of_warp = first + static_cast<int>(threadIdx.x) / 32 * members;
      Row rows[2];
      State state;
      find_rows(args, work, of_warp, rows);
      walk<true>(args, work, rows, of_warp < work.item.count, stages, shared, state);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (rows[r].token < 0 || rows[r].start >= work.end) continue;
        const std::int64_t at = std::int64_t{rows[r].slot} * args.op.num_heads + rows[r].head;
        Unit::store_row(state, r, args.partial_out + at * kHeadDim);
        if (threadIdx.x % 4 == 0) {
          args.partial_max_sum[at] = make_float2(state.max[r], state.sum[r]);
        }
      }
      __syncthreads();
      const std::int32_t m = first + static_cast<int>(threadIdx.x);
      if (static_cast<int>(threadIdx.x) < kWarps * members && m < work.item.count) {
        const DecodeMember member = load_member(args, work.item.first_member + m);
        if (window_start(member.length - 1, args.op.sliding_window) < work.end) {
          asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(
                           args.arrivals + member.first_slot * gridDim.x + blockIdx.x)
                       : "memory");
        }
      }
    }
  }

  // An item as it lies in memory.
  struct RawItem {
    int4 low, high;
  };
  __device__ static RawItem load_item(const AttentionArgs& args, std::int32_t index) {
    const int4* items = reinterpret_cast<const int4*>(args.items) + 2 * index;
    return {__ldg(items), __ldg(items + 1)};
  }

  __device__ static Work make_work(const AttentionArgs& args, const RawItem& raw) {
    const auto group = static_cast<std::int32_t>(args.op.num_heads / args.op.cache.num_kv_heads);
    const std::int32_t tiles_a_group = (group + kRows - 1) / kRows;
    const auto tile = static_cast<std::int32_t>(blockIdx.x);
    Work work;
    work.item = {raw.low.x,  raw.low.y,  raw.low.z,  raw.low.w,
                 raw.high.x, raw.high.y, raw.high.z, raw.high.w};
    work.size = split_tokens(work.item.length);
    work.split = work.shared() ? work.item.part / kChains : work.item.part;
    work.chain = work.shared() ? work.item.part % kChains : 0;
    work.kv_head = tile / tiles_a_group;
    const std::int32_t first_row = tile % tiles_a_group * kRows;
    work.first_head = work.kv_head * group + first_row;
    work.num_heads = min(kRows, group - first_row);
    work.start = window_start(work.item.length - 1, args.op.sliding_window);
    work.begin = work.split * work.size;
    work.end = min(work.begin + work.size, work.item.length);
    // Groups before the window are skipped in whole rounds, so that a group's chain never changes.
    work.begin += max(0, work.start - work.begin) / kRound * kRound;
    const auto warp = static_cast<std::int32_t>(threadIdx.x / 32);
    const std::int32_t chain = work.shared() ? work.chain : warp;
    work.first_offset = token_offset(args, work, work.begin + chain * kTokens, work.end);
    return work;
  }

  __device__ static void run(const AttentionArgs& args, int stages, char* shared) {
    allow_next();
    const std::int32_t num_items = args.header->num_items;
    auto i = static_cast<std::int32_t>(blockIdx.y);
    if (i >= num_items) return await_inputs();
    // The next item is fetched while one is computed, its block table entries while that is merged.
    Work work = make_work(args, load_item(args, i));
    while (true) {
      const std::int32_t next = i + static_cast<std::int32_t>(gridDim.y);
      const std::int32_t clamped = min(next, num_items - 1);
      asm volatile("prefetch.global.L1 [%0];" ::"l"(args.items + clamped));
      const bool live = work.live();
      if (!live) await_inputs();
      if (work.shared()) {
        if (live) run_shared(args, work, stages, shared);
        work = make_work(args, load_item(args, clamped));
      } else {
        State state;
        if (live) {
          Row rows[2];
          find_rows(args, work, 0, rows);
          walk<false>(args, work, rows, true, stages, shared, state);
        }
        const Work next_work = make_work(args, load_item(args, clamped));
        if (live) finish(args, work, shared, state);
        work = next_work;
      }
      if (next >= num_items) return;
      i = next;
    }
  }
};

}  // namespace pagedcore::cuda
