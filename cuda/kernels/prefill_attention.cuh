#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/kernels/attention.cuh"

namespace pagedcore::cuda {

// Prefill attention: spans of several query tokens. The rows of a tile are (token, query head of
// one KV head) pairs, token-major, so that a tile reads each K and V once for all its heads.
//
// One thread block per (KV head, query tile of a span), grid (num_kv_heads, num_tiles); tiles run
// last first, the long ones of a causal span leading. KV tiles of kCols tokens lie at absolute
// positions and are taken in order, so that a row's sum does not depend on its tile or chunk: a
// masked token adds exactly nothing. Shared memory: the query tile and two stages of K and V
// (cp.async). Method: FlashAttention-2, Dao 2023; paged KV, Kwon et al. 2023, section 4.
template <typename KV, int kHeadDim>
struct PrefillAttention {
  using T = typename MmaType<KV>::type;
  static constexpr bool kWiden = sizeof(KV) == 1;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kFragments = kHeadDim > 128 ? 1 : 2;  // 16-row fragments a warp
  static constexpr int kWarpRows = 16 * kFragments;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kCols = kHeadDim > 128 ? 32 : 64;
  using Raw = TileLayout<kHeadDim* static_cast<int>(sizeof(KV))>;
  using Tile = TileLayout<kHeadDim * 2>;
  static constexpr int kQueryBytes = kRows * Tile::kRowBytes;
  static constexpr int kRawBytes = kCols * Raw::kRowBytes;
  static constexpr int kStageBytes = 2 * kRawBytes;
  static constexpr int kWideTile = kCols * Tile::kRowBytes;
  static constexpr int kWideBytes = kWiden ? 2 * kWideTile : 0;
  static constexpr int kSharedBytes = kQueryBytes + 2 * kStageBytes + kWideBytes;

  struct Work {
    std::int32_t query_start;  // token of the batch
    std::int32_t query_len;
    std::int32_t context_len;
    std::int32_t table_row;
    std::int32_t first_row;  // of the tile, in the span's packed rows
    std::int32_t kv_head;
    std::int32_t group;
    std::int32_t start, end;  // positions that any row of the tile sees
  };

  struct State {
    float max[kFragments][2];
    float sum[kFragments][2];
    float out[kFragments][kHeadDim / 8][4];
  };

  // Finds the tile'th query tile among the spans, counted from the last. Called by a whole warp.
  __device__ static Work find_work(const AttentionArgs& args, std::int32_t kv_head,
                                   std::int32_t tile) {
    const int lane = threadIdx.x % 32;
    const ForwardBatch& b = args.batch;
    Work work;
    work.kv_head = kv_head;
    work.group = static_cast<std::int32_t>(args.op.num_heads / args.op.cache.num_kv_heads);
    std::int32_t before = 0;
    for (std::int32_t base = 0; base < args.header->num_prefill; base += 32) {
      const std::int32_t i = base + lane;
      const std::int32_t seq = i < args.header->num_prefill ? args.prefill[i] : -1;
      const std::int32_t len = seq < 0 ? 0 : b.query_starts[seq + 1] - b.query_starts[seq];
      std::int32_t tiles = (len * work.group + kRows - 1) / kRows;
      std::int32_t total = tiles;
#pragma unroll
      for (int d = 1; d < 32; d *= 2) {
        const std::int32_t other = __shfl_up_sync(0xffffffffu, total, d);
        if (lane >= d) total += other;
      }
      const std::int32_t local = tile - before;
      const unsigned here = __ballot_sync(0xffffffffu, local >= total - tiles && local < total);
      if (here != 0) {
        const int owner = __ffs(here) - 1;
        const std::int32_t found = __shfl_sync(0xffffffffu, seq, owner);
        const std::int32_t in_span =
            __shfl_sync(0xffffffffu, tiles - 1 - (local - (total - tiles)), owner);
        work.query_start = b.query_starts[found];
        work.query_len = b.query_starts[found + 1] - work.query_start;
        work.context_len = b.context_lens[found];
        work.table_row = b.table_rows[found];
        work.first_row = in_span * kRows;
        break;
      }
      before += __shfl_sync(0xffffffffu, total, 31);
    }
    const std::int32_t last_row = min(work.first_row + kRows, work.query_len * work.group) - 1;
    work.start =
        window_start(work.context_len + work.first_row / work.group, args.op.sliding_window);
    work.end = work.context_len + last_row / work.group + 1;
    return work;
  }

  __device__ static void load_query(const PagedAttentionParams& p, const Work& work, char* tile) {
    constexpr int kChunks = Tile::kChunks;
    for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const std::int32_t packed = work.first_row + row;
      float v[8] = {};
      if (packed < work.query_len * work.group) {
        const std::int64_t token = work.query_start + packed / work.group;
        const std::int64_t head = work.kv_head * work.group + packed % work.group;
        load8(p.query, p.query_dtype, (token * p.num_heads + head) * kHeadDim + chunk * 8, v);
      }
      *reinterpret_cast<uint4*>(tile + Tile::offset(row, chunk)) =
          make_uint4(pack2(v[0], v[1], T{}), pack2(v[2], v[3], T{}), pack2(v[4], v[5], T{}),
                     pack2(v[6], v[7], T{}));
    }
  }

  // Starts the copies of the KV tile at `begin`; what no row sees is not read, but zero.
  __device__ static void issue(const AttentionArgs& args, const Work& work, const KV* k_base,
                               std::int32_t begin, std::uint32_t stage) {
    constexpr int kCopies = (kCols * Raw::kChunks + kThreads - 1) / kThreads;
    const KvCacheView& c = args.op.cache;
    const int shift = __ffs(static_cast<int>(c.block_size)) - 1;
    const BlockId* table = args.batch.block_tables + work.table_row * args.batch.table_stride;
    const std::int64_t block_stride = c.block_stride(), kv_stride = c.kv_stride();
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * kThreads;
      const int row = index / Raw::kChunks, chunk = index % Raw::kChunks;
      if (row >= kCols) continue;
      const std::int32_t token = begin + row;
      const bool seen = token >= work.start && token < work.end;
      const BlockId block = seen ? __ldg(table + (token >> shift)) : 0;
      const KV* k = k_base + block * block_stride + (token & (c.block_size - 1)) * kHeadDim +
                    chunk * (16 / sizeof(KV));
      const std::uint32_t dst = stage + Raw::offset(row, chunk);
      copy_async16(dst, k, seen);
      copy_async16(dst + kRawBytes, k + kv_stride, seen);
    }
  }

  // Adds the KV tile at `begin` to the state. `position[f][r]` is the position of the lane's rows.
  template <bool kMasked>
  __device__ static void step(const AttentionArgs& args, std::int32_t begin,
                              const std::int32_t (&position)[kFragments][2], std::uint32_t q_tile,
                              std::uint32_t k_tile, std::uint32_t v_tile, State& state) {
    const int lane = threadIdx.x % 32;
    float s[kFragments][kCols / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      std::uint32_t a[kFragments][4];
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        load_matrix(a[f], q_tile + Tile::offset(f * 16 + lane % 16, 2 * k + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < kCols / 16; ++n) {
        std::uint32_t b[4];
        load_matrix(b,
                    k_tile + Tile::offset(n * 16 + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
#pragma unroll
        for (int f = 0; f < kFragments; ++f) {
          mma(s[f][2 * n], a[f], b[0], b[1], T{});
          mma(s[f][2 * n + 1], a[f], b[2], b[3], T{});
        }
      }
    }
    const float scale = args.op.scale * args.op.cache.k_scale * kLog2E;
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
      for (int n = 0; n < kCols / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) s[f][n][c] *= scale;
      }
      if (args.op.softcap != 0.0f) cap_scores(s[f], args.op.softcap);
      if constexpr (kMasked) {
#pragma unroll
        for (int n = 0; n < kCols / 8; ++n) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const std::int32_t token = begin + n * 8 + lane % 4 * 2 + c % 2;
            const std::int32_t at = position[f][c / 2];
            const bool seen = token <= at && token >= window_start(at, args.op.sliding_window);
            if (!seen) s[f][n][c] = kNegativeInfinity;
          }
        }
      }
      float max_new[2] = {state.max[f][0], state.max[f][1]};
#pragma unroll
      for (int n = 0; n < kCols / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) max_new[c / 2] = fmaxf(max_new[c / 2], s[f][n][c]);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        max_new[r] = fmaxf(max_new[r], __shfl_xor_sync(0xffffffffu, max_new[r], 1));
        max_new[r] = fmaxf(max_new[r], __shfl_xor_sync(0xffffffffu, max_new[r], 2));
        const float keep = exp2_approx(state.max[f][r] - finite_max(max_new[r]));
        state.max[f][r] = max_new[r];
        max_new[r] = finite_max(max_new[r]);
        state.sum[f][r] *= keep;
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; ++n) {
          state.out[f][n][2 * r] *= keep;
          state.out[f][n][2 * r + 1] *= keep;
        }
      }
#pragma unroll
      for (int n = 0; n < kCols / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          s[f][n][c] = exp2_approx(s[f][n][c] - max_new[c / 2]);
          state.sum[f][c / 2] += s[f][n][c];
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kCols / 16; ++k) {
      std::uint32_t p[kFragments][4];
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        const auto& s0 = s[f][2 * k];
        const auto& s1 = s[f][2 * k + 1];
        p[f][0] = pack2(s0[0], s0[1], T{}), p[f][1] = pack2(s0[2], s0[3], T{});
        p[f][2] = pack2(s1[0], s1[1], T{}), p[f][3] = pack2(s1[2], s1[3], T{});
      }
#pragma unroll
      for (int n = 0; n < kHeadDim / 16; ++n) {
        std::uint32_t b[4];
        load_matrix_transposed(b, v_tile + Tile::offset(k * 16 + lane % 16, 2 * n + lane / 16));
#pragma unroll
        for (int f = 0; f < kFragments; ++f) {
          mma(state.out[f][2 * n], p[f], b[0], b[1], T{});
          mma(state.out[f][2 * n + 1], p[f], b[2], b[3], T{});
        }
      }
    }
  }

  __device__ static void store(const PagedAttentionParams& p, const Work& work, State& state) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float sum = state.sum[f][r];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const std::int32_t packed = work.first_row + warp * kWarpRows + f * 16 + r * 8 + lane / 4;
        if (packed >= work.query_len * work.group) continue;
        const std::int64_t token = work.query_start + packed / work.group;
        const std::int64_t head = work.kv_head * work.group + packed % work.group;
        const std::int64_t at = (token * p.num_heads + head) * kHeadDim + lane % 4 * 2;
        const float factor = p.cache.v_scale / sum;
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; ++n) {
          store2(p.out, p.out_dtype, at + n * 8, state.out[f][n][2 * r] * factor,
                 state.out[f][n][2 * r + 1] * factor);
        }
      }
    }
  }

  __device__ static void run(const AttentionArgs& args, char* shared) {
    allow_next();
    await_inputs();
    const PagedAttentionParams& p = args.op;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Work work = find_work(args, static_cast<std::int32_t>(blockIdx.x),
                                static_cast<std::int32_t>(blockIdx.y));
    const KV* k_base = static_cast<const KV*>(p.cache.data) + p.layer * p.cache.layer_stride() +
                       work.kv_head * p.cache.head_stride();
    const std::uint32_t q_tile = smem_address(shared) + warp * kWarpRows * Tile::kRowBytes;
    char* stages = shared + kQueryBytes;
    char* wide = stages + 2 * kStageBytes;

    State state;
    std::int32_t position[kFragments][2];
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        state.max[f][r] = kNegativeInfinity;
        state.sum[f][r] = 0.0f;
        const std::int32_t packed = work.first_row + warp * kWarpRows + f * 16 + r * 8 + lane / 4;
        position[f][r] = work.context_len + packed / work.group;
      }
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) state.out[f][n][c] = 0.0f;
      }
    }

    std::int32_t begin = work.start / kCols * kCols;
    const std::int32_t first_position = work.context_len + work.first_row / work.group;
    issue(args, work, k_base, begin, smem_address(stages));
    copy_commit();
    load_query(p, work, shared);
    int stage = 0;
    for (; begin < work.end; begin += kCols, stage ^= 1) {
      if (begin + kCols < work.end) {
        issue(args, work, k_base, begin + kCols, smem_address(stages + (stage ^ 1) * kStageBytes));
      }
      copy_commit();
      copy_wait<1>();
      __syncthreads();
      char* raw = stages + stage * kStageBytes;
      std::uint32_t k_tile = smem_address(raw), v_tile = k_tile + kRawBytes;
      if constexpr (kWiden) {
        widen_tile<kHeadDim>(raw, wide, kCols, threadIdx.x, kThreads);
        widen_tile<kHeadDim>(raw + kRawBytes, wide + kWideTile, kCols, threadIdx.x, kThreads);
        __syncthreads();
        k_tile = smem_address(wide), v_tile = k_tile + kWideTile;
      }
      const bool masked =
          begin + kCols - 1 > first_position ||
          (p.sliding_window > 0 && begin < window_start(work.end - 1, p.sliding_window));
      if (masked) {
        step<true>(args, begin, position, q_tile, k_tile, v_tile, state);
      } else {
        step<false>(args, begin, position, q_tile, k_tile, v_tile, state);
      }
      __syncthreads();
    }
    copy_wait<0>();
    store(p, work, state);
  }
};

}  // namespace pagedcore::cuda
