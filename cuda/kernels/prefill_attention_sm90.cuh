#pragma once

#include <nv/target>

#include "cuda/kernels/prefill_attention.cuh"
#include "cuda/kernels/wgmma.cuh"

namespace pagedcore::cuda {

// Prefill attention on Hopper; the rows, the tiles and their order are PrefillAttention's.
//
// One thread block per (KV head, query tile of 128 rows), of three warpgroups. The first copies KV
// tiles of kCols tokens (cp.async by block table, two stages of K and of V); each of the others
// computes 64 rows: S = Q K^T by wgmma, online softmax in registers, O += P V by wgmma with P from
// registers. A warpgroup issues the next tile's S before this one's O, so that the softmax of the
// one runs beside the products of the other; the two warpgroups take turns at issuing.
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
  static constexpr int kHalves = kHeadDim / 64;  // 64-column tiles of a row
  static constexpr int kQueryTile = kRows * 128;
  static constexpr int kTile = kCols * 128;
  static constexpr int kStageBytes = kHalves * kTile;
  static constexpr int kQueryBytes = kHalves * kQueryTile;
  static constexpr int kSharedBytes = 1024 + kQueryBytes + 2 * kStages * kStageBytes + 64;
  static_assert(!kServes || kRows == Base::kRows);

  struct Shared {
    std::uint32_t query, k, v, barriers;
    __device__ explicit Shared(char* raw) {
      query = (smem_address(raw) + 1023) / 1024 * 1024;
      k = query + kQueryBytes;
      v = k + kStages * kStageBytes;
      barriers = v + kStages * kStageBytes;
    }
    __device__ std::uint32_t full(int kv, int stage) const {
      return barriers + 8 * (2 * kv + stage);
    }
    __device__ std::uint32_t empty(int kv, int stage) const { return full(kv, stage) + 32; }
  };

  // The copying warpgroup. Warp w copies rows 32 w ..
  __device__ static void produce(const AttentionArgs& args, const Work& work, const Shared& s,
                                 std::int32_t begin) {
    constexpr int kChunks = kHeadDim / 8;
    constexpr int kRowsAtOnce = 32 / kChunks;
    const KvCacheView& c = args.op.cache;
    const int lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * 32;
    const KV* base = static_cast<const KV*>(c.data) + args.op.layer * c.layer_stride() +
                     work.kv_head * c.head_stride();
    const int shift = __ffs(static_cast<int>(c.block_size)) - 1;
    const BlockId* table = args.batch.block_tables + work.table_row * args.batch.table_stride;
    const auto row_offset = [&](std::int32_t tile_begin) -> std::int64_t {
      const std::int32_t token = tile_begin + first_row + lane;
      if (token < work.start || token >= work.end) return -1;
      return __ldg(table + (token >> shift)) * c.block_stride() +
             (token & (c.block_size - 1)) * kHeadDim;
    };
    const auto copy_tile = [&](const KV* from, std::int64_t offset, std::uint32_t to) {
#pragma unroll
      for (int i = 0; i < 32 / kRowsAtOnce; ++i) {
        const int in_warp = i * kRowsAtOnce + lane / kChunks, chunk = lane % kChunks;
        const std::int64_t at = __shfl_sync(0xffffffffu, offset, in_warp);
        const std::uint32_t dst =
            to + chunk / 8 * kTile + sm90::swizzled(first_row + in_warp, chunk % 8);
        copy_async16(dst, from + (at < 0 ? 0 : at) + chunk * 8, at >= 0);
      }
    };
    std::int64_t offset = row_offset(begin);
    int tile = 0;
    for (; begin < work.end; begin += kCols, ++tile) {
      const int stage = tile % kStages, parity = tile / kStages % 2;
      const std::int64_t now = offset;
      offset = row_offset(begin + kCols);
      barrier_wait(s.empty(0, stage), parity ^ 1);
      copy_tile(base, now, s.k + stage * kStageBytes);
      sm90::barrier_arrive_after_copies(s.full(0, stage));
      barrier_wait(s.empty(1, stage), parity ^ 1);
      copy_tile(base + c.kv_stride(), now, s.v + stage * kStageBytes);
      sm90::barrier_arrive_after_copies(s.full(1, stage));
    }
  }

  __device__ static void load_query(const PagedAttentionParams& p, const Work& work,
                                    std::uint32_t tile, int thread) {
    constexpr int kChunks = kHeadDim / 8;
    for (int i = thread; i < kRows * kChunks; i += 128 * kConsumers) {
      const int row = i / kChunks, chunk = i % kChunks;
      const std::int32_t packed = work.first_row + row;
      float v[8] = {};
      if (packed < work.query_len * work.group) {
        const std::int64_t token = work.query_start + packed / work.group;
        const std::int64_t head = work.kv_head * work.group + packed % work.group;
        load8(p.query, p.query_dtype, (token * p.num_heads + head) * kHeadDim + chunk * 8, v);
      }
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(tile + chunk / 8 * kQueryTile +
                                                                    sm90::swizzled(row, chunk % 8)),
                   "r"(pack2(v[0], v[1], KV{})), "r"(pack2(v[2], v[3], KV{})),
                   "r"(pack2(v[4], v[5], KV{})), "r"(pack2(v[6], v[7], KV{}))
                   : "memory");
    }
    sm90::proxy_fence();
    asm volatile("bar.sync 1, %0;" ::"n"(128 * kConsumers) : "memory");
  }

  __device__ static void multiply_keys(const Shared& s, int stage, int group, float (&score)[64]) {
    const std::uint32_t q = s.query + group * 64 * 128, k = s.k + stage * kStageBytes;
    sm90::mma_fence();
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) {
      const std::uint64_t a = sm90::describe(q + i / 4 * kQueryTile + i % 4 * 32, 16);
      const std::uint64_t b = sm90::describe(k + i / 4 * kTile + i % 4 * 32, 16);
      sm90::mma_shared(score, a, b, i > 0, KV{});
    }
    sm90::mma_commit();
  }

  __device__ static void multiply_values(const Shared& s, int stage,
                                         const std::uint32_t (&weights)[kCols / 16][4],
                                         float (&out)[kHeadDim / 2]) {
    sm90::mma_fence();
#pragma unroll
    for (int i = 0; i < kCols / 16; ++i) {
      const std::uint32_t v = s.v + stage * kStageBytes + i * 16 * 128;
      sm90::mma_registers(out, weights[i], sm90::describe(v, kTile), KV{});
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

  // The computing warpgroups issue their products in turns, so that one's softmax runs beside the
  // other's products and not beside the other's softmax.
  __device__ static void await_turn(int group) {
    asm volatile("bar.sync %0, %1;" ::"r"(2 + group), "n"(128 * kConsumers) : "memory");
  }
  __device__ static void give_turn(int group) {
    asm volatile("bar.arrive %0, %1;" ::"r"(2 + group), "n"(128 * kConsumers) : "memory");
  }

  // One of the computing warpgroups.
  __device__ static void consume(const AttentionArgs& args, const Work& work, const Shared& s,
                                 std::int32_t begin) {
    const PagedAttentionParams& p = args.op;
    const int thread = static_cast<int>(threadIdx.x) - 128;
    const int group = thread / 128, lane = threadIdx.x % 32;
    load_query(p, work, s.query, thread);
    float out[kHeadDim / 2], score[64], max[2], sum[2] = {0.0f, 0.0f};
    std::int32_t position[2], packed[2];
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) out[i] = 0.0f;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      max[r] = kNegativeInfinity;
      packed[r] = work.first_row + group * 64 + thread / 32 % 4 * 16 + r * 8 + lane / 4;
      position[r] = work.context_len + packed[r] / work.group;
    }
    const std::int32_t first_position =
        work.context_len + (work.first_row + group * 64) / work.group;
    const std::int32_t full_window =
        p.sliding_window > 0 ? window_start(work.end - 1, p.sliding_window) : 0;
    float keep[2];
    std::uint32_t weights[kCols / 16][4];
    const auto weigh = [&](std::int32_t tile_begin) {
      if (tile_begin + kCols - 1 > first_position || tile_begin < full_window) {
        softmax<true>(args, tile_begin, position, score, max, sum, keep);
      } else {
        softmax<false>(args, tile_begin, position, score, max, sum, keep);
      }
    };
    // Of each tile the keys, then, one tile later, the values: the softmax of a tile runs while the
    // values of the one before are multiplied.
    if (group == 1) give_turn(0);
    barrier_wait(s.full(0, 0), 0);
    sm90::proxy_fence();
    multiply_keys(s, 0, group, score);
    sm90::mma_wait<0>();
    if (lane == 0) barrier_arrive(s.empty(0, 0));
    weigh(begin);
    pack(score, weights);
    int tile = 0;
    for (begin += kCols; begin < work.end; begin += kCols, ++tile) {
      const int next = (tile + 1) % kStages;
      barrier_wait(s.full(0, next), (tile + 1) / kStages % 2);
      barrier_wait(s.full(1, tile % kStages), tile / kStages % 2);
      sm90::proxy_fence();
      await_turn(group);
      multiply_keys(s, next, group, score);
      multiply_values(s, tile % kStages, weights, out);
      give_turn(group ^ 1);
      sm90::mma_wait<1>();
      if (lane == 0) barrier_arrive(s.empty(0, next));
      weigh(begin);
      sm90::mma_wait<0>();
      if (lane == 0) barrier_arrive(s.empty(1, tile % kStages));
#pragma unroll
      for (int i = 0; i < kHeadDim / 2; ++i) out[i] *= keep[i / 2 % 2];
      pack(score, weights);
    }
    barrier_wait(s.full(1, tile % kStages), tile / kStages % 2);
    sm90::proxy_fence();
    await_turn(group);
    multiply_values(s, tile % kStages, weights, out);
    if (group == 0) give_turn(1);
    sm90::mma_wait<0>();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
      if (packed[r] >= work.query_len * work.group) continue;
      const std::int64_t token = work.query_start + packed[r] / work.group;
      const std::int64_t head = work.kv_head * work.group + packed[r] % work.group;
      const std::int64_t at = (token * p.num_heads + head) * kHeadDim + lane % 4 * 2;
      const float factor = p.cache.v_scale / sum[r];
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        store2(p.out, p.out_dtype, at + n * 8, out[4 * n + 2 * r] * factor,
               out[4 * n + 2 * r + 1] * factor);
      }
    }
  }

  __device__ static void run(const AttentionArgs& args, char* raw) {
    allow_next();
    await_inputs();
    const Shared s(raw);
    if (threadIdx.x == 0) {
      for (int kv = 0; kv < 2; ++kv) {
        for (int stage = 0; stage < kStages; ++stage) {
          barrier_init(s.full(kv, stage), 128);
          barrier_init(s.empty(kv, stage), 4 * kConsumers);
        }
      }
      barrier_init_fence();
    }
    __syncthreads();
    const Work work = Base::find_work(args, static_cast<std::int32_t>(blockIdx.y));
    const std::int32_t begin = work.start / kCols * kCols;
    if (threadIdx.x < 128) {
      sm90::give_registers<56>();
      produce(args, work, s, begin);
    } else {
      sm90::take_registers<224>();
      consume(args, work, s, begin);
    }
  }
};

template <typename KV, int kHeadDim>
__global__ void __launch_bounds__(PrefillAttentionSm90<KV, kHeadDim>::kThreads, 1)
    prefill_attention_sm90_kernel(const __grid_constant__ AttentionArgs args) {
  extern __shared__ __align__(128) char shared[];
  NV_IF_TARGET(NV_HAS_FEATURE_SM_90a, (PrefillAttentionSm90<KV, kHeadDim>::run(args, shared);))
}

// The kernel of the device's architecture.
template <typename KV, int kHeadDim>
void launch_best_prefill_attention(const AttentionArgs& args, std::int64_t num_tiles,
                                   cudaStream_t stream) {
  using Kernel = PrefillAttentionSm90<KV, kHeadDim>;
  if constexpr (Kernel::kServes) {
    if (args.sm_major == 9) {
      const auto kernel = prefill_attention_sm90_kernel<KV, kHeadDim>;
      PAGEDCORE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                Kernel::kSharedBytes));
      const dim3 grid(static_cast<unsigned>(args.op.cache.num_kv_heads),
                      static_cast<unsigned>(num_tiles));
      launch_dependent(kernel, grid, Kernel::kThreads, Kernel::kSharedBytes, stream, args);
      return;
    }
  }
  launch_prefill_attention_as<KV, kHeadDim>(args, num_tiles, stream);
}

}  // namespace pagedcore::cuda
