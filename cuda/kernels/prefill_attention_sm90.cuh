#pragma once

#include "cuda/kernels/prefill_attention.cuh"
#include "cuda/kernels/wgmma.cuh"

namespace pagedcore::cuda {

// Prefill attention on Hopper; the rows, the tiles and their order are PrefillAttention's.
//
// Grid: as many thread blocks as processors; each computes its share of the items (query tile of
// kRows rows, KV head). Block: three warpgroups. Shared memory: Shared.
// The first warpgroup loads: a warp keys and a warp values, in tiles of kCols tokens, by one tensor
// copy a block and 64 columns; two warps find the items and load their queries, one item ahead. The
// others compute 64 rows each: S = Q K^T by wgmma, online softmax in registers, O += P V by wgmma
// with P from registers. A warpgroup issues the next tile's S before this one's O, so that its
// softmax runs beside its own products, and the two take turns at issuing, so that the softmax of
// one runs beside the products of the other.
// Method: FlashAttention-3, Shah et al. 2024; paged KV, Kwon et al. 2023, section 4.
template <typename KV, int kHeadDim>
struct PrefillAttentionSm90 {
  using Base = PrefillAttention<KV, kHeadDim>;
  using Work = typename Base::Work;
  static constexpr bool kServes = sizeof(KV) == 2 && (kHeadDim == 64 || kHeadDim == 128);
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  static constexpr int kRows = 64 * kConsumers;
  static constexpr int kCols = 128;
  static constexpr int kStages = 2;
  static constexpr int kItems = 2;               // one being computed, one being loaded
  static constexpr int kLoaders = 64;            // threads that load queries
  static constexpr int kHalves = kHeadDim / 64;  // 64-column tiles of a row
  static constexpr int kQueryTile = kRows * 128;
  static constexpr int kTile = kCols * 128;
  static constexpr int kStageBytes = kHalves * kTile;
  static_assert(!kServes || (kRows == Base::kRows && kCols == kPrefillTileTokens));

  struct Shared {
    char query[kItems][kHalves * kQueryTile];
    char kv[2][kStages][kStageBytes];
    Work work[kItems];  // none is left where end is 0
    std::uint64_t item_full[kItems], item_empty[kItems];
    std::uint64_t full[2][kStages], empty[2][kStages];
  };
  static constexpr int kSharedBytes = 1024 + sizeof(Shared);

  // Where a role is in a ring of buffers.
  template <int kSize>
  struct Cursor {
    int index = 0, parity = 0;
    __device__ void next() {
      if (++index == kSize) index = 0, parity ^= 1;
    }
  };

  __device__ static void init_barriers(Shared& s) {
    for (int i = 0; i < kItems; ++i) {
      barrier_init(smem_address(&s.item_full[i]), kLoaders + 1);
      barrier_init(smem_address(&s.item_empty[i]), 2 + 4 * kConsumers);
    }
    for (int kv = 0; kv < 2; ++kv) {
      for (int stage = 0; stage < kStages; ++stage) {
        barrier_init(smem_address(&s.full[kv][stage]), 1);
        barrier_init(smem_address(&s.empty[kv][stage]), 4 * kConsumers);
      }
    }
    barrier_init_fence();
  }

  // The thread block's round'th item: forth and back over the thread blocks, as the items of a span
  // get shorter.
  __device__ static std::int32_t item_of(std::int32_t round) {
    const auto size = static_cast<std::int32_t>(gridDim.x), block = static_cast<int>(blockIdx.x);
    return round * size + (round % 2 == 0 ? block : size - 1 - block);
  }

  // Two warps: find the items and load their queries.
  __device__ static void load_items(const AttentionArgs& args, std::int32_t num_items, Shared& s) {
    const int thread = static_cast<int>(threadIdx.x) % kLoaders;
    const auto kv_heads = static_cast<std::int32_t>(args.op.cache.num_kv_heads);
    Cursor<kItems> at;
    for (std::int32_t round = 0;; ++round, at.next()) {
      const std::int32_t item = item_of(round);
      Work work{};
      const bool any = item < num_items;  // where not, the rounds behind are empty too
      if (any) work = Base::find_work(args, item % kv_heads, item / kv_heads);
      if (round == 0) await_inputs();  // what it was found by was there before
      barrier_wait(smem_address(&s.item_empty[at.index]), at.parity ^ 1);
      const std::uint32_t full = smem_address(&s.item_full[at.index]);
      if (thread == 0) {
        s.work[at.index] = work;
        barrier_arrive(full);
      }
      if (any) {
        load_query(args.op, work, smem_address(s.query[at.index]), thread, full);
      } else {
        barrier_arrive(full);
        return;
      }
    }
  }

  // Loads a query tile; the thread arrives at `full` when its part is there.
  __device__ static void load_query(const PagedAttentionParams& p, const Work& work,
                                    std::uint32_t tile, int thread, std::uint32_t full) {
    constexpr int kChunks = kHeadDim / 8;
    const bool same = p.query_dtype == p.cache.dtype;
#pragma unroll 1
    for (int i = thread; i < kRows * kChunks; i += kLoaders) {
      const int row = i / kChunks, chunk = i % kChunks;
      const std::int32_t packed = work.first_row + row;
      const bool real = packed < work.query_len * work.group;
      const std::int64_t token = work.query_start + packed / work.group;
      const std::int64_t head = work.kv_head * work.group + packed % work.group;
      const std::int64_t at =
          real ? (token * p.num_heads + head) * kHeadDim + chunk * 8 : std::int64_t{0};
      const std::uint32_t dst = tile + chunk / 8 * kQueryTile + sm90::swizzled(row, chunk % 8);
      if (same) {
        copy_async16(dst, static_cast<const KV*>(p.query) + at, real);
        continue;
      }
      float v[8] = {};
      if (real) load8(p.query, p.query_dtype, at, v);
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(dst),
                   "r"(pack2(v[0], v[1], KV{})), "r"(pack2(v[2], v[3], KV{})),
                   "r"(pack2(v[4], v[5], KV{})), "r"(pack2(v[6], v[7], KV{}))
                   : "memory");
    }
    if (same) {
      barrier_arrive_after_copies(full);
    } else {
      barrier_arrive(full);
    }
  }

  // One warp: loads the keys (kv is 0) or the values of all items.
  __device__ static void load_cache(const AttentionArgs& args, const CUtensorMap& map, Shared& s,
                                    int kv) {
    const KvCacheView& c = args.op.cache;
    const int lane = threadIdx.x % 32;
    const auto block_size = static_cast<int>(c.block_size);
    const int shift = __ffs(block_size) - 1;
    // Of each tile a lane copies one box: the tokens that lie in one block, 64 columns of them.
    const int box_tokens = prefill_box_tokens(block_size);
    const int box = lane % 16, half = lane / 16;
    const bool copies = box * box_tokens < kCols && half < kHalves;
    Cursor<kItems> item;
    Cursor<kStages> at;
    await_inputs();
    for (;; item.next()) {
      barrier_wait(smem_address(&s.item_full[item.index]), item.parity);
      const Work work = s.work[item.index];
      __syncwarp();
      if (lane == 0) barrier_arrive(smem_address(&s.item_empty[item.index]));
      if (work.end == 0) return;
      const BlockId* table = args.batch.block_tables + work.table_row * args.batch.table_stride;
      // Blocks that no row sees are not in the table; beyond the last block all is zero.
      const auto block_of = [&](std::int32_t first) {
        const std::int32_t token = first + box * box_tokens;
        const bool seen = copies && token < work.end && token + box_tokens > work.start;
        return seen ? __ldg(table + (token >> shift)) : static_cast<BlockId>(c.num_blocks);
      };
      std::int32_t begin = work.start / kCols * kCols;
      BlockId block = block_of(begin);
      for (; begin < work.end; begin += kCols, at.next()) {
        const BlockId now = block;
        block = block_of(begin + kCols);
        const std::uint32_t full = smem_address(&s.full[kv][at.index]);
        barrier_wait(smem_address(&s.empty[kv][at.index]), at.parity ^ 1);
        if (lane == 0) sm90::barrier_arrive_expecting(full, kStageBytes);
        __syncwarp();
        if (copies) {
          const std::uint32_t dst =
              smem_address(s.kv[kv][at.index]) + half * kTile + box * box_tokens * 128;
          const int row = (begin + box * box_tokens) & (block_size - 1);
          const auto head =
              (now * c.num_layers + args.op.layer) * 2 * c.num_kv_heads + work.kv_head;
          sm90::copy_box(dst, map, half * 64, row, kv, static_cast<int>(head), full);
        }
      }
    }
  }

  __device__ static void multiply_keys(std::uint32_t q, std::uint32_t k, float (&score)[64]) {
    sm90::mma_fence();
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) {
      const std::uint64_t a = sm90::describe(q + i / 4 * kQueryTile + i % 4 * 32, 16);
      const std::uint64_t b = sm90::describe(k + i / 4 * kTile + i % 4 * 32, 16);
      sm90::mma_shared(score, a, b, i > 0, KV{});
    }
    sm90::mma_commit();
  }

  __device__ static void multiply_values(std::uint32_t v,
                                         const std::uint32_t (&weights)[kCols / 16][4],
                                         float (&out)[kHeadDim / 2]) {
    sm90::mma_fence();
#pragma unroll
    for (int i = 0; i < kCols / 16; ++i) {
      sm90::mma_registers(out, weights[i], sm90::describe(v + i * 16 * 128, kTile), KV{});
    }
    sm90::mma_commit();
  }

  // Turns scores into weights and adds them to `sum`; what was summed before is to be multiplied by
  // `keep`, which is exactly one where the maximum stays. `max` is of scores before their factor.
  template <bool kMasked>
  __device__ static void softmax(const AttentionArgs& args, std::int32_t begin,
                                 const std::int32_t (&position)[2], float (&score)[64],
                                 float (&max)[2], float (&sum)[2], float (&keep)[2]) {
    const int lane = threadIdx.x % 32;
    const float scale = args.op.scale * args.op.cache.k_scale * kLog2E;
    if (args.op.softcap != 0.0f) {
      auto& tiles = reinterpret_cast<float (&)[16][4]>(score);
#pragma unroll
      for (int i = 0; i < 64; ++i) score[i] *= scale;
      cap_scores(tiles, args.op.softcap);
    }
    // Scores are scaled as they are exponentiated; the scale is positive.
    const float factor = args.op.softcap != 0.0f ? 1.0f : scale;
    float max_new[2] = {max[0], max[1]};
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      if constexpr (kMasked) {
        const std::int32_t token = begin + i / 4 * 8 + lane % 4 * 2 + i % 2;
        const std::int32_t at = position[i / 2 % 2];
        const bool seen = token <= at && token >= window_start(at, args.op.sliding_window);
        if (!seen) score[i] = kNegativeInfinity;
      }
      max_new[i / 2 % 2] = fmaxf(max_new[i / 2 % 2], score[i]);
    }
    float reference[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      max_new[r] = fmaxf(max_new[r], __shfl_xor_sync(0xffffffffu, max_new[r], 1));
      max_new[r] = fmaxf(max_new[r], __shfl_xor_sync(0xffffffffu, max_new[r], 2));
      const float finite = finite_max(max_new[r]);
      keep[r] = exp2_approx((max[r] - finite) * factor);
      reference[r] = finite * factor;
      max[r] = max_new[r];
      sum[r] *= keep[r];
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      score[i] = exp2_approx(fmaf(score[i], factor, -reference[i / 2 % 2]));
      sum[i / 2 % 2] += score[i];
    }
  }

  __device__ static void pack(const float (&score)[64], std::uint32_t (&weights)[kCols / 16][4]) {
#pragma unroll
    for (int i = 0; i < kCols / 16; ++i) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        weights[i][r] = pack2(score[8 * i + 2 * r], score[8 * i + 2 * r + 1], KV{});
      }
    }
  }

  // Rows [first, end) of a tile of values become zero, as a weight of zero does not take away NaN.
  // By one warpgroup; another may do the same at once.
  __device__ static void zero_rows(std::uint32_t v, int first, int end) {
    constexpr int kChunks = kHeadDim / 8;
    for (int i = static_cast<int>(threadIdx.x) % 128; i < (end - first) * kChunks; i += 128) {
      const int row = first + i / kChunks, chunk = i % kChunks;
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(v + chunk / 8 * kTile +
                                                                    sm90::swizzled(row, chunk % 8)),
                   "r"(0)
                   : "memory");
    }
    sm90::proxy_fence();
  }

  // The computing warpgroups issue their products in turns, so that one's softmax runs beside the
  // other's products and not beside the other's softmax.
  __device__ static void await_turn(int group) {
    asm volatile("bar.sync %0, %1;" ::"r"(2 + group), "n"(128 * kConsumers) : "memory");
  }
  __device__ static void give_turn(int group) {
    asm volatile("bar.arrive %0, %1;" ::"r"(2 + group), "n"(128 * kConsumers) : "memory");
  }

  // Where one of the computing warpgroups is.
  struct Progress {
    int group;
    Cursor<kItems> item;
    Cursor<kStages> keys, values;
  };

  // One item's 64 rows of one of the computing warpgroups.
  __device__ static void attend(const AttentionArgs& args, const Work& work, Shared& s,
                                Progress& at) {
    const PagedAttentionParams& p = args.op;
    const int group = at.group, lane = threadIdx.x % 32;
    float out[kHeadDim / 2], score[64], max[2], sum[2] = {0.0f, 0.0f}, keep[2];
    std::uint32_t weights[kCols / 16][4];
    std::int32_t position[2], packed[2];
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) out[i] = 0.0f;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      max[r] = kNegativeInfinity;
      packed[r] = work.first_row + group * 64 + static_cast<int>(threadIdx.x) / 32 % 4 * 16 +
                  r * 8 + lane / 4;
      position[r] = work.context_len + packed[r] / work.group;
    }
    const std::int32_t first_position =
        work.context_len + (work.first_row + group * 64) / work.group;
    const std::int32_t full_window =
        p.sliding_window > 0 ? window_start(work.end - 1, p.sliding_window) : 0;
    const auto weigh = [&](std::int32_t tile_begin) {
      if (tile_begin + kCols - 1 > first_position || tile_begin < full_window) {
        softmax<true>(args, tile_begin, position, score, max, sum, keep);
      } else {
        softmax<false>(args, tile_begin, position, score, max, sum, keep);
      }
    };
    const std::uint32_t query = smem_address(s.query[at.item.index]) + group * 64 * 128;
    const auto tile = [&](int kv, int stage) { return smem_address(s.kv[kv][stage]); };
    const auto await = [&](int kv, const Cursor<kStages>& c) {
      barrier_wait(smem_address(&s.full[kv][c.index]), c.parity);
    };
    const auto release = [&](int kv, Cursor<kStages>& c) {
      if (lane == 0) barrier_arrive(smem_address(&s.empty[kv][c.index]));
      c.next();
    };
    // Of each tile the keys, then, one tile later, the values: the softmax of a tile runs while the
    // values of the one before are multiplied.
    std::int32_t begin = work.start / kCols * kCols;
    if (group == 1) give_turn(0);
    await(0, at.keys);
    multiply_keys(query, tile(0, at.keys.index), score);
    sm90::mma_wait<0>();
    release(0, at.keys);
    weigh(begin);
    pack(score, weights);
    for (begin += kCols; begin < work.end; begin += kCols) {
      await(0, at.keys);
      await(1, at.values);
      await_turn(group);
      multiply_keys(query, tile(0, at.keys.index), score);
      multiply_values(tile(1, at.values.index), weights, out);
      give_turn(group ^ 1);
      sm90::mma_wait<1>();
      release(0, at.keys);
      weigh(begin);
      sm90::mma_wait<0>();
      release(1, at.values);
#pragma unroll
      for (int i = 0; i < kHeadDim / 2; ++i) out[i] *= keep[i / 2 % 2];
      pack(score, weights);
    }
    if (lane == 0) barrier_arrive(smem_address(&s.item_empty[at.item.index]));
    await(1, at.values);
    const auto block_mask = static_cast<std::int32_t>(p.cache.block_size) - 1;
    const std::int32_t unwritten = -work.end & block_mask & (kCols - 1);
    if (unwritten > 0) {
      const std::int32_t first = work.end - (begin - kCols);
      zero_rows(tile(1, at.values.index), first, first + unwritten);
    }
    await_turn(group);
    multiply_values(tile(1, at.values.index), weights, out);
    if (group == 0) give_turn(1);
    sm90::mma_wait<0>();
    release(1, at.values);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
      if (packed[r] >= work.query_len * work.group) continue;
      const std::int64_t token = work.query_start + packed[r] / work.group;
      const std::int64_t head = work.kv_head * work.group + packed[r] % work.group;
      const std::int64_t to = (token * p.num_heads + head) * kHeadDim + lane % 4 * 2;
      const float factor = p.cache.v_scale / sum[r];
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        store2(p.out, p.out_dtype, to + n * 8, out[4 * n + 2 * r] * factor,
               out[4 * n + 2 * r + 1] * factor);
      }
    }
  }

  // One of the computing warpgroups.
  __device__ static void compute(const AttentionArgs& args, Shared& s) {
    Progress at{};
    at.group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128 - 1, 0);
    await_inputs();
    for (;; at.item.next()) {
      barrier_wait(smem_address(&s.item_full[at.item.index]), at.item.parity);
      sm90::proxy_fence();  // the queries were written by ordinary copies
      const Work work = s.work[at.item.index];
      if (work.end == 0) return;
      attend(args, work, s, at);
    }
  }

  __device__ static void run(const AttentionArgs& args, const CUtensorMap& map,
                             std::int32_t num_items, char* raw) {
    allow_next();
    Shared& s = *reinterpret_cast<Shared*>(raw + (1024 - smem_address(raw) % 1024) % 1024);
    if (threadIdx.x == 0) init_barriers(s);
    __syncthreads();
    if (threadIdx.x < 128) {
      sm90::give_registers<40>();
      const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
      if (warp < 2) {
        load_cache(args, map, s, warp);
      } else {
        load_items(args, num_items, s);
      }
    } else {
      sm90::take_registers<232>();
      compute(args, s);
    }
  }
};

}  // namespace pagedcore::cuda
