#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/kernels/attention.cuh"

namespace pagedcore::cuda {

// Decode attention: one query token a sequence, the query heads of a KV head packed into the rows
// of one tensor-core tile, so that K and V are read once.
//
// Work item: (split of a sequence, KV head, tile of kRows query heads). Sequences that hold a split
// in the same blocks share an item: their heads fill the tile together, and since rows do not touch
// each other, each row's bits are those of its sequence alone. Thread blocks walk the
// items of the step; the grid is as large as the device holds at once. Warp w takes the 16-token
// groups w, w + kWarps, ... of the split through a pipeline of its own of kStages cp.async groups;
// then the warps' sums are merged in order. The thread block that finishes the last split of a
// (sequence, heads) merges the partial sums of all its splits, in the order of the splits.
// Shared memory: kWarps * kStages tiles of 16 K and 16 V rows. Bytes moved: K and V once.
// Method: online softmax, Milakov & Gimelshein 2018; split KV, FlashDecoding (Dao et al. 2023).
template <typename KV, int kHeadDim>
struct DecodeAttention {
  using T = typename MmaType<KV>::type;
  static constexpr bool kWiden = sizeof(KV) == 1;
  static constexpr int kRows = 16;
  static constexpr int kTokens = 16;  // a warp's step
  static constexpr int kWarps = kHeadDim > 128 ? 2 : 4;
  static constexpr int kThreads = kWarps * 32;
  using Raw = TileLayout<kHeadDim* static_cast<int>(sizeof(KV))>;
  using Tile = TileLayout<kHeadDim * 2>;
  static constexpr int kTileBytes = kTokens * Raw::kRowBytes;
  static constexpr int kStageBytes = 2 * kTileBytes;
  static constexpr int kWideBytes = kWiden ? 2 * kTokens * Tile::kRowBytes : 0;
  static constexpr int kQueryBytes = kRows * Tile::kRowBytes;
  // Thread blocks that share a processor: one's loads run while another merges.
  static constexpr int kBlocksPerSm = kHeadDim <= 64 ? 4 : kHeadDim <= 128 ? 3 : 2;
  static constexpr int kBudget = 221184 / kBlocksPerSm < 98304 ? 221184 / kBlocksPerSm : 98304;
  static constexpr int kWarpBudget = kBudget / kWarps - kWideBytes;
  static constexpr int kStages = kWarpBudget / kStageBytes > 6 ? 6 : kWarpBudget / kStageBytes;
  static constexpr int kWarpBytes = kStages * kStageBytes + kWideBytes;
  static constexpr int kMergeBytes = kWarps * kRows * (kHeadDim + 2) * 4;
  static constexpr int kSharedBytes =
      kWarps * kWarpBytes > kMergeBytes ? kWarps * kWarpBytes : kMergeBytes;
  static_assert(kMaxSplits * kRows * sizeof(float2) <= kSharedBytes);
  // The query passes through the wide tiles, or through the stage that is filled last.
  static constexpr int kQueryOffset = kWiden ? kStages * kStageBytes : (kStages - 1) * kStageBytes;
  static_assert(kHeadDim % 16 == 0 && kStages >= 2);
  static_assert(kQueryBytes <= (kWiden ? kWideBytes : kStageBytes));

  struct Work {
    DecodeItem item;
    std::int32_t group;  // query heads of a KV head
    std::int32_t kv_head;
    std::int32_t first_head;
    std::int32_t num_rows;      // query heads in the tile, of all members
    std::int32_t start;         // first position that any row sees
    std::int32_t size;          // tokens of a split
    std::int32_t begin, end;    // tokens of the split, from the first that is seen
    std::int64_t first_offset;  // token_offset() of the warp's first tokens
  };

  // A sequence of the item, and what its splits are.
  struct Member {
    std::int32_t token, length, first_slot;
    std::int32_t start, first_split, num_splits;
  };
  __device__ static Member member(const AttentionArgs& args, const Work& work, int m) {
    Member r{work.item.token, work.item.length, work.item.first_slot, 0, 0, 0};
    if (work.item.count > 1) {
      const int4 raw =
          __ldg(reinterpret_cast<const int4*>(args.items) + work.item.first_member + m);
      r.token = raw.x, r.length = raw.y, r.first_slot = raw.z;
    }
    r.start = window_start(r.length - 1, args.op.sliding_window);
    r.first_split = r.start / work.size;
    r.num_splits = (r.length + work.size - 1) / work.size - r.first_split;
    return r;
  }
  __device__ static int member_of(const Work& work, int row) {
    return work.item.count > 1 ? row / work.group : 0;
  }
  // The query head of a row, counted from first_head.
  __device__ static int head_of(const Work& work, int row) {
    return work.item.count > 1 ? row % work.group : row;
  }

  // What a warp knows of its 16 rows: lane l holds rows l / 4 and l / 4 + 8.
  struct State {
    float max[2] = {kNegativeInfinity, kNegativeInfinity};
    float sum[2] = {0.0f, 0.0f};
    float out[kHeadDim / 8][4] = {};
  };

  // The tile of query rows, through `tile` (kQueryBytes of the warp's own shared memory).
  __device__ static void load_query(const AttentionArgs& args, const Work& work, char* tile,
                                    std::uint32_t (&q)[kHeadDim / 16][4]) {
    const PagedAttentionParams& p = args.op;
    const int lane = threadIdx.x % 32;
#pragma unroll 4
    for (int i = lane; i < kRows * Tile::kChunks; i += 32) {
      const int row = i / Tile::kChunks, chunk = i % Tile::kChunks;
      float v[8] = {};
      if (row < work.num_rows) {
        const std::int64_t token = member(args, work, member_of(work, row)).token;
        const std::int64_t head = token * p.num_heads + work.first_head + head_of(work, row);
        load8(p.query, p.query_dtype, head * kHeadDim + chunk * 8, v);
      }
      *reinterpret_cast<uint4*>(tile + Tile::offset(row, chunk)) =
          make_uint4(pack2(v[0], v[1], T{}), pack2(v[2], v[3], T{}), pack2(v[4], v[5], T{}),
                     pack2(v[6], v[7], T{}));
    }
    __syncwarp();
    const std::uint32_t address = smem_address(tile);
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      load_matrix(q[k], address + Tile::offset(lane % 16, 2 * k + lane / 16));
    }
    __syncwarp();
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

  // Starts the copies of 16 tokens of K and V; `offset` is token_offset() of their first. `whole`
  // says that all are to be read and lie in one block.
  __device__ static void issue(const KV* k_base, std::int64_t kv_stride, std::int64_t offset,
                               bool whole, std::uint32_t stage) {
    constexpr int kCopies = (kTokens * Raw::kChunks + 31) / 32;
    const int lane = threadIdx.x % 32;
    if (whole) {
      const KV* k = k_base + __shfl_sync(0xffffffffu, offset, 0) + lane * (16 / sizeof(KV));
      const KV* v = k + kv_stride;
#pragma unroll
      for (int n = 0; n < kCopies; ++n) {
        const int i = n * 32 + lane;
        const std::uint32_t dst = stage + Raw::offset(i / Raw::kChunks, i % Raw::kChunks);
        if (i >= kTokens * Raw::kChunks) continue;
        copy_async16(dst, k + n * (512 / sizeof(KV)), true);
        copy_async16(dst + kTileBytes, v + n * (512 / sizeof(KV)), true);
      }
      return;
    }
#pragma unroll 1
    for (int n = 0; n < kCopies; ++n) {
      const int i = n * 32 + lane;
      const int row = i / Raw::kChunks, chunk = i % Raw::kChunks;
      const std::int64_t at = __shfl_sync(0xffffffffu, offset, row % kTokens);
      if (row >= kTokens) continue;
      const KV* k = k_base + (at < 0 ? 0 : at) + chunk * (16 / sizeof(KV));
      const std::uint32_t dst = stage + Raw::offset(row, chunk);
      copy_async16(dst, k, at >= 0);
      copy_async16(dst + kTileBytes, k + kv_stride, at >= 0);
    }
  }

  // Adds 16 tokens at `begin` to the state; `start` is the first position that each of the lane's
  // rows sees, `all_start` that all rows see.
  __device__ static void step(const AttentionArgs& args, const std::int32_t (&start)[2],
                              std::int32_t all_start, std::int32_t begin, std::int32_t end,
                              const std::uint32_t (&q)[kHeadDim / 16][4], std::uint32_t k_tile,
                              std::uint32_t v_tile, State& state) {
    const int lane = threadIdx.x % 32;
    float s[2][4] = {}, odd[2][4] = {};
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      std::uint32_t b[4];
      load_matrix(b, k_tile + Tile::offset(lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
      mma(k % 2 == 0 ? s[0] : odd[0], q[k], b[0], b[1], T{});
      mma(k % 2 == 0 ? s[1] : odd[1], q[k], b[2], b[3], T{});
    }
    const float scale = args.op.scale * args.op.cache.k_scale * kLog2E;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) s[n][c] = (s[n][c] + odd[n][c]) * scale;
    }
    if (args.op.softcap != 0.0f) cap_scores(s, args.op.softcap);
    if (begin < all_start || begin + kTokens > end) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const std::int32_t token = begin + n * 8 + lane % 4 * 2 + c % 2;
          if (token < start[c / 2] || token >= end) s[n][c] = kNegativeInfinity;
        }
      }
    }
    float max_new[2] = {state.max[0], state.max[1]};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) max_new[c / 2] = fmaxf(max_new[c / 2], s[n][c]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      max_new[r] = fmaxf(max_new[r], __shfl_xor_sync(0xffffffffu, max_new[r], 1));
      max_new[r] = fmaxf(max_new[r], __shfl_xor_sync(0xffffffffu, max_new[r], 2));
    }
    const bool higher = max_new[0] != state.max[0] || max_new[1] != state.max[1];
    if (__any_sync(0xffffffffu, higher)) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float keep = exp2_approx(state.max[r] - finite_max(max_new[r]));
        state.max[r] = max_new[r];
        state.sum[r] *= keep;
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; ++n) {
          state.out[n][2 * r] *= keep;
          state.out[n][2 * r + 1] *= keep;
        }
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        s[n][c] = exp2_approx(s[n][c] - finite_max(max_new[c / 2]));
        state.sum[c / 2] += s[n][c];
      }
    }
    const std::uint32_t p[4] = {pack2(s[0][0], s[0][1], T{}), pack2(s[0][2], s[0][3], T{}),
                                pack2(s[1][0], s[1][1], T{}), pack2(s[1][2], s[1][3], T{})};
#pragma unroll
    for (int n = 0; n < kHeadDim / 16; ++n) {
      std::uint32_t b[4];
      load_matrix_transposed(b, v_tile + Tile::offset(lane % 16, 2 * n + lane / 16));
      mma(state.out[2 * n], p, b[0], b[1], T{});
      mma(state.out[2 * n + 1], p, b[2], b[3], T{});
    }
  }

  // The warp's share of a split.
  __device__ static void walk(const AttentionArgs& args, const Work& work, char* shared,
                              State& state) {
    const PagedAttentionParams& p = args.op;
    const int warp = threadIdx.x / 32;
    const KV* k_base = static_cast<const KV*>(p.cache.data) + p.layer * p.cache.layer_stride() +
                       work.kv_head * p.cache.head_stride();
    const std::int32_t end = work.end;
    const std::int32_t round = kWarps * kTokens;
    std::int32_t begin = work.begin + warp * kTokens;

    char* pipe = shared + warp * kWarpBytes;
    const std::uint32_t pipe_address = smem_address(pipe);
    std::int64_t offset = work.first_offset;
    std::int32_t ahead = begin;
    const bool blocks_hold_groups = p.cache.block_size >= kTokens;
    const auto issue_next = [&](int to_stage) {
      const bool whole = blocks_hold_groups && ahead >= work.start && ahead + kTokens <= end;
      issue(k_base, p.cache.kv_stride(), offset, whole, pipe_address + to_stage * kStageBytes);
      ahead += round;
      offset = token_offset(args, work, ahead, end);
    };
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) {
      if (ahead < end) issue_next(s);
      copy_commit();
    }
    std::uint32_t q[kHeadDim / 16][4];
    load_query(args, work, pipe + kQueryOffset, q);
    std::int32_t start[2] = {work.start, work.start}, all_start = work.start;
    if (work.item.count > 1 && p.sliding_window > 0) {
      all_start = end;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = min(static_cast<int>(threadIdx.x % 32) / 4 + 8 * r, work.num_rows - 1);
        start[r] = member(args, work, member_of(work, row)).start;
      }
    }
    int stage = 0;
    for (; begin < end; begin += round) {
      copy_wait<kStages - 2>();
      __syncwarp();
      if (ahead < end) issue_next(stage == 0 ? kStages - 1 : stage - 1);
      copy_commit();
      std::uint32_t k_tile = pipe_address + stage * kStageBytes;
      std::uint32_t v_tile = k_tile + kTileBytes;
      if constexpr (kWiden) {
        char* wide = pipe + kStages * kStageBytes;
        char* raw = pipe + stage * kStageBytes;
        constexpr int kWideTile = kTokens * Tile::kRowBytes;
        widen_tile<kHeadDim>(raw, wide, kTokens, threadIdx.x % 32, 32);
        widen_tile<kHeadDim>(raw + kTileBytes, wide + kWideTile, kTokens, threadIdx.x % 32, 32);
        __syncwarp();
        k_tile = smem_address(wide);
        v_tile = k_tile + kWideTile;
      }
      step(args, start, all_start, begin, end, q, k_tile, v_tile, state);
      __syncwarp();
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    copy_wait<0>();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      state.sum[r] += __shfl_xor_sync(0xffffffffu, state.sum[r], 1);
      state.sum[r] += __shfl_xor_sync(0xffffffffu, state.sum[r], 2);
    }
  }

  // Merges the warps' states in order. Writes the output where the split is the only one, else the
  // partial sums. `shared` holds [warp][row] (max, sum), then [warp][row][kHeadDim].
  __device__ static void merge_warps(const AttentionArgs& args, const Work& work, char* shared,
                                     const State& state) {
    const PagedAttentionParams& p = args.op;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float2* max_sum = reinterpret_cast<float2*>(shared);
    float* out = reinterpret_cast<float*>(shared + kWarps * kRows * sizeof(float2));
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane / 4 + 8 * r;
      if (row >= work.num_rows) continue;
      if (lane % 4 == 0) max_sum[warp * kRows + row] = make_float2(state.max[r], state.sum[r]);
      float* o = out + (warp * kRows + row) * kHeadDim + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        *reinterpret_cast<float2*>(o + n * 8) =
            make_float2(state.out[n][2 * r], state.out[n][2 * r + 1]);
      }
    }
    __syncthreads();
    const Member first = member(args, work, 0);
    for (int i = threadIdx.x; i < work.num_rows * kHeadDim; i += kThreads) {
      const int row = i / kHeadDim;
      float max_all = kNegativeInfinity, sum = 0.0f, o = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) max_all = fmaxf(max_all, max_sum[w * kRows + row].x);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float2 ms = max_sum[w * kRows + row];
        const float factor = exp2_approx(ms.x - max_all);
        sum += ms.y * factor;
        o += out[w * kRows * kHeadDim + i] * factor;
      }
      const Member of = work.item.count > 1 ? member(args, work, member_of(work, row)) : first;
      if (work.item.split < of.first_split) continue;
      const std::int64_t head = work.first_head + head_of(work, row);
      if (of.num_splits == 1) {
        store1(p.out, p.out_dtype, (of.token * p.num_heads + head) * kHeadDim + i % kHeadDim,
               o / sum * p.cache.v_scale);
      } else {
        const std::int64_t at = (of.first_slot + work.item.split) * p.num_heads + head;
        args.partial_out[at * kHeadDim + i % kHeadDim] = o;
        if (i % kHeadDim == 0) args.partial_max_sum[at] = make_float2(max_all, sum);
      }
    }
  }

  // The last of a (sequence, heads) to arrive merges the splits in order.
  __device__ static void merge_splits(const AttentionArgs& args, const Work& work, const Member& of,
                                      char* shared, std::int64_t num_tiles, std::int64_t tile) {
    __shared__ bool last;
    float2* max_sum = reinterpret_cast<float2*>(shared);  // [kMaxSplits, kRows]
    const PagedAttentionParams& p = args.op;
    const int num_rows = work.item.count > 1 ? work.group : work.num_rows;
    const std::int64_t first_index = of.first_slot + of.first_split;
    __syncthreads();
    if (threadIdx.x == 0) {
      // Releases what the thread block wrote and acquires what the others did.
      std::uint32_t* arrivals = args.arrivals + first_index * num_tiles + tile;
      std::uint32_t before;
      asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                   : "=r"(before)
                   : "l"(arrivals)
                   : "memory");
      last = before + 1 == static_cast<std::uint32_t>(of.num_splits);
      if (last) *arrivals = 0;
    }
    __syncthreads();
    if (!last) return;
    const std::int64_t first = first_index * p.num_heads + work.first_head;
    for (int i = threadIdx.x; i < of.num_splits * kRows; i += kThreads) {
      const int split = i / kRows, row = min(i % kRows, num_rows - 1);
      max_sum[i] = __ldcg(args.partial_max_sum + first + split * p.num_heads + row);
    }
    __syncthreads();
    const std::int64_t stride = p.num_heads * kHeadDim / 4;
    const std::int64_t out = (of.token * p.num_heads + work.first_head) * kHeadDim;
    for (int i = threadIdx.x; i < num_rows * kHeadDim / 4; i += kThreads) {
      const float2* ms = max_sum + i * 4 / kHeadDim;
      float max_all = kNegativeInfinity, sum = 0.0f;
      for (int s = 0; s < of.num_splits; ++s) max_all = fmaxf(max_all, ms[s * kRows].x);
      const float4* from = reinterpret_cast<const float4*>(args.partial_out + first * kHeadDim) + i;
      float o[4] = {};
#pragma unroll 8
      for (int s = 0; s < of.num_splits; ++s) {
        const float4 part = __ldcg(from + s * stride);
        const float factor = exp2_approx(ms[s * kRows].x - max_all);
        sum += ms[s * kRows].y * factor;
        o[0] += part.x * factor, o[1] += part.y * factor;
        o[2] += part.z * factor, o[3] += part.w * factor;
      }
      const float scale = p.cache.v_scale / sum;
      store2(p.out, p.out_dtype, out + i * 4, o[0] * scale, o[1] * scale);
      store2(p.out, p.out_dtype, out + i * 4 + 2, o[2] * scale, o[3] * scale);
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

  // What of an item's members the rows of one tile hold.
  struct Part {
    std::int32_t first, count;
  };

  // The work of a tile of an item. Nothing is to be done where the part has no members.
  __device__ static Work make_work(const AttentionArgs& args, std::int32_t tile, Part part,
                                   const RawItem& raw, std::int32_t group) {
    const std::int32_t tiles_a_group = (group + kRows - 1) / kRows;
    Work work;
    work.item = {raw.low.x,  raw.low.y,  raw.low.z,  raw.low.w,
                 raw.high.x, raw.high.y, raw.high.z, raw.high.w};
    work.group = group;
    work.size = split_tokens(work.item.length);
    part.count = min(part.count, work.item.count - part.first);
    if (part.count < work.item.count) {
      work.item.first_member += part.first;
      if (part.count == 1) {
        const Member of = member(args, work, 0);
        work.item.token = of.token;
        work.item.length = of.length;
        work.item.first_slot = of.first_slot;
      }
      work.item.count = part.count;
    }
    work.kv_head = tile / tiles_a_group;
    const std::int32_t first_row = tile % tiles_a_group * kRows;
    work.first_head = work.kv_head * group + first_row;
    work.num_rows = min(kRows, work.item.count * group - first_row);
    work.start = window_start(work.item.length - 1, args.op.sliding_window);
    work.begin = work.item.split * work.size;
    work.end = min(work.begin + work.size, work.item.length);
    if (part.count <= 0) work.end = 0;
    // Groups before the window are skipped in whole rounds, so a group's warp never changes.
    constexpr std::int32_t kRound = kWarps * kTokens;
    work.begin += max(0, work.start - work.begin) / kRound * kRound;
    const auto warp = static_cast<std::int32_t>(threadIdx.x / 32);
    work.first_offset = token_offset(args, work, work.begin + warp * kTokens, work.end);
    return work;
  }

  // From the warps' states to the output.
  __device__ static void finish(const AttentionArgs& args, const Work& work, char* shared,
                                const State& state, std::int32_t num_tiles, std::int32_t tile) {
    merge_warps(args, work, shared, state);
    for (int m = 0; m < work.item.count; ++m) {
      const Member of = member(args, work, m);
      if (of.num_splits > 1 && work.item.split >= of.first_split) {
        merge_splits(args, work, of, shared, num_tiles, tile);
      }
    }
    __syncthreads();
  }

  __device__ static void run(const AttentionArgs& args, char* shared) {
    allow_next();
    const PagedAttentionParams& p = args.op;
    const auto group = static_cast<std::int32_t>(p.num_heads / p.cache.num_kv_heads);
    const std::int32_t num_tiles =
        static_cast<std::int32_t>(p.cache.num_kv_heads) * ((group + kRows - 1) / kRows);
    const std::int32_t members_a_tile = max(1, kRows / group);
    const std::int32_t num_parts = (args.header->max_members + members_a_tile - 1) / members_a_tile;
    const std::int32_t works_an_item = num_tiles * num_parts;
    const std::int32_t num_work = args.header->num_items * works_an_item;
    const auto work_of = [&](std::int32_t index, const RawItem& item) {
      const Part part{index % works_an_item / num_tiles * members_a_tile, members_a_tile};
      return make_work(args, index % num_tiles, part, item, group);
    };
    std::int32_t w = blockIdx.x;
    if (w >= num_work) return await_inputs();
    // Descriptors are loaded one item ahead, block table entries while the last item is merged.
    Work work = work_of(w, load_item(args, w / works_an_item));
    await_inputs();
    while (true) {
      const std::int32_t next = w + static_cast<std::int32_t>(gridDim.x);
      const std::int32_t clamped = min(next, num_work - 1);
      const RawItem next_item = load_item(args, clamped / works_an_item);
      const bool live = work.end > work.start;
      State state;
      if (live) walk(args, work, shared, state);
      const Work next_work = work_of(clamped, next_item);
      if (live) finish(args, work, shared, state, num_tiles, w % num_tiles);
      if (next >= num_work) return;
      w = next;
      work = next_work;
    }
  }
};

}  // namespace pagedcore::cuda
