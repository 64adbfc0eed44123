#pragma once

#include "cuda/kernels/decode_tile.cuh"

namespace pagedcore::cuda {

// How decode attention puts a sequence's sums together: the chains of a split in order, then the
// splits in order. By one warp, while others compute the next item.
template <typename KV, int kHeadDim>
struct DecodeMerge {
  using Tile = DecodeTile<KV, kHeadDim>;
  using State = typename Tile::State;
  static constexpr int kPartRow = kHeadDim + 8;  // floats; eight rows are spread over the banks
  static constexpr int kStep = 4 * 32;           // elements of a vector of four a lane

  // Shared memory for the chains of tiles of `heads` query heads: [chain][head] (max, sum), then
  // the outputs [chain][head][kPartRow].
  static constexpr int shared_bytes(int heads) {
    return kChains * heads * static_cast<int>(sizeof(float2) + kPartRow * sizeof(float));
  }

  // Which sums a sequence has.
  struct Plan {
    std::int32_t first, num_splits;  // splits that are seen: [first, num_splits)
    std::int32_t num_sums;           // partial sums of them
    std::int64_t own_slot;           // slot of split s: own_slot + s, unless it is shared
  };
  __device__ static Plan plan(const DecodeWork& work) {
    const DecodeItem& item = work.item;
    Plan plan;
    plan.first = work.start / work.size;
    plan.num_splits = (item.length + work.size - 1) / work.size;
    plan.num_sums = plan.num_splits - max(plan.first, item.num_shared) +
                    kChains * max(item.num_shared - plan.first, 0);
    plan.own_slot = item.first_slot + (kChains - 1) * item.num_shared;
    return plan;
  }

  // sum += part * factor, rounded once, wherever sums are merged.
  __device__ static void add_scaled(float4& sum, const float4& part, float factor) {
    sum.x = fmaf(part.x, factor, sum.x), sum.y = fmaf(part.y, factor, sum.y);
    sum.z = fmaf(part.z, factor, sum.z), sum.w = fmaf(part.w, factor, sum.w);
  }
  // Merges the maxima and sums of a split's chains; their outputs are to be added by `factor`.
  __device__ static float2 merge_factors(const float2 (&chains)[kChains],
                                         float (&factor)[kChains]) {
    float2 all = make_float2(kNegativeInfinity, 0.0f);
#pragma unroll
    for (int c = 0; c < kChains; ++c) all.x = fmaxf(all.x, chains[c].x);
#pragma unroll
    for (int c = 0; c < kChains; ++c) {
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

  // A computing warp's chain to shared memory.
  __device__ static void store_chain(const DecodeWork& work, char* shared, const State& state) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, heads = work.num_heads;
    float2* max_sum = reinterpret_cast<float2*>(shared);
    float* out = reinterpret_cast<float*>(max_sum + kChains * heads);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int head = lane / 4 + 8 * r;
      if (head >= heads) continue;
      const int at = warp * heads + head;
      if (lane % 4 == 0) max_sum[at] = make_float2(state.max[r], state.sum[r]);
      Tile::store_row(state, r, out + at * kPartRow);
    }
  }

  // Merges the chains of a split. Writes the output where the split is the only one, else the
  // partial sums.
  __device__ static void merge_chains(const AttentionArgs& args, const DecodeWork& work,
                                      const Plan& plan, const char* shared) {
    const PagedAttentionParams& p = args.op;
    const int lane = threadIdx.x % 32, heads = work.num_heads;
    const float2* max_sum = reinterpret_cast<const float2*>(shared);
    const float* out = reinterpret_cast<const float*>(max_sum + kChains * heads);
#pragma unroll 4
    for (int i = lane * 4; i < heads * kHeadDim; i += kStep) {
      const int head = i / kHeadDim, element = i % kHeadDim;
      float2 chains[kChains];
      float factor[kChains];
#pragma unroll
      for (int c = 0; c < kChains; ++c) chains[c] = max_sum[c * heads + head];
      const float2 all = merge_factors(chains, factor);
      float4 o = {};
#pragma unroll
      for (int c = 0; c < kChains; ++c) {
        const float* from = out + (c * heads + head) * kPartRow + element;
        add_scaled(o, *reinterpret_cast<const float4*>(from), factor[c]);
      }
      const std::int64_t query_head = work.first_head + head;
      if (plan.num_sums == 1) {
        store_out(p, work.item.token * p.num_heads + query_head, element, o, all.y);
      } else {
        const std::int64_t at = (plan.own_slot + work.split) * p.num_heads + query_head;
        *reinterpret_cast<float4*>(args.partial_out + at * kHeadDim + element) = o;
        if (element == 0) args.partial_max_sum[at] = all;
      }
    }
  }

  // Says that a partial sum of the sequence is there; whether the warp is to merge them, all being
  // there then.
  __device__ static bool arrive(const DecodeWork& work, const Plan& plan, std::uint32_t* arrivals) {
    __syncwarp();
    bool merges = false;
    if (threadIdx.x % 32 == 0) {
      // Releases what the warp wrote and acquires what the others did.
      const auto all = static_cast<std::uint32_t>(plan.num_sums);
      std::uint32_t there;
      asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                   : "=r"(there)
                   : "l"(arrivals)
                   : "memory");
      ++there;
      if (work.item.num_shared > 0 && work.split == plan.num_splits - 1) {
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
    return __any_sync(0xffffffffu, merges);
  }

  // What is merged of a sequence so far: four elements of a row.
  struct Total {
    float max = kNegativeInfinity, sum = 0.0f;
    float4 out = {};

    __device__ void add(const float2& max_sum, const float4& part) {
      const float max_new = fmaxf(max, max_sum.x);
      const float keep = exp2_approx(max - max_new), factor = exp2_approx(max_sum.x - max_new);
      max = max_new;
      sum = fmaf(max_sum.y, factor, sum * keep);
      out = make_float4(out.x * keep, out.y * keep, out.z * keep, out.w * keep);
      add_scaled(out, part, factor);
    }
  };

  // Merges a sequence's splits.
  __device__ static void merge_splits(const AttentionArgs& args, const DecodeWork& work,
                                      const Plan& plan) {
    constexpr int kAtOnce = 4;
    const PagedAttentionParams& p = args.op;
    const int size = work.num_heads * kHeadDim;
    for (int first = static_cast<int>(threadIdx.x) % 32 * 4; first < size;
         first += kStep * kAtOnce) {
      int at[kAtOnce];  // beyond the last head, the first element again
      Total total[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        at[j] = first + j * kStep < size ? first + j * kStep : first;
      }
      const auto load = [&](std::int64_t slot, int j, float2& max_sum, float4& part) {
        const std::int64_t head = slot * p.num_heads + work.first_head;
        max_sum = __ldcg(args.partial_max_sum + head + at[j] / kHeadDim);
        const float* from = args.partial_out + head * kHeadDim + at[j];
        part = __ldcg(reinterpret_cast<const float4*>(from));
      };
      std::int32_t s = plan.first;
      for (; s < work.item.num_shared; ++s) {
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          float2 chains[kChains];
          float4 part[kChains], split = {};
          float factor[kChains];
#pragma unroll
          for (int c = 0; c < kChains; ++c) {
            load(work.item.first_slot + kChains * s + c, j, chains[c], part[c]);
          }
          const float2 max_sum = merge_factors(chains, factor);
#pragma unroll
          for (int c = 0; c < kChains; ++c) add_scaled(split, part[c], factor[c]);
          total[j].add(max_sum, split);
        }
      }
#pragma unroll 4
      for (; s < plan.num_splits; ++s) {
        float2 max_sum[kAtOnce];
        float4 part[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) load(plan.own_slot + s, j, max_sum[j], part[j]);
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) total[j].add(max_sum[j], part[j]);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (first + j * kStep >= size) break;
        const std::int64_t row = work.item.token * p.num_heads + work.first_head + at[j] / kHeadDim;
        store_out(p, row, at[j] % kHeadDim, total[j].out, total[j].sum);
      }
    }
  }
};

}  // namespace pagedcore::cuda
