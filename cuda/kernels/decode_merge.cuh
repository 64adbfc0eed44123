#pragma once

#include "cuda/kernels/decode_tile.cuh"

namespace pagedcore::cuda {

// How decode attention puts a sequence's sums together: the chains of a split in order, then the
// splits in order. By kThreads: one warp, while others compute the next item, or, behind the last
// item, the warps that computed it. Their number does not change what is added to what.
template <typename KV, int kHeadDim>
struct DecodeMerge {
  using Tile = DecodeTile<KV, kHeadDim>;
  using State = typename Tile::State;
  static constexpr int kPartRow = kHeadDim + 8;  // floats; eight rows are spread over the banks

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
  // Merges four elements of a split's chains; gives the maximum and the sum.
  __device__ static float2 add_chains(const float2* chains, const float4* part, float4& out) {
    float2 all = make_float2(kNegativeInfinity, 0.0f);
#pragma unroll
    for (int c = 0; c < kChains; ++c) all.x = fmaxf(all.x, chains[c].x);
    out = {};
#pragma unroll
    for (int c = 0; c < kChains; ++c) {
      const float factor = exp2_approx(chains[c].x - all.x);
      all.y = fmaf(chains[c].y, factor, all.y);
      add_scaled(out, part[c], factor);
    }
    return all;
  }
  __device__ static void store_out(const PagedAttentionParams& p, std::int64_t row, int element,
                                   const float4& o, float sum) {
    const float scale = __fdividef(p.cache.v_scale, sum);
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
  template <int kThreads>
  __device__ static void merge_chains(const AttentionArgs& args, const DecodeWork& work,
                                      const Plan& plan, const char* shared) {
    const PagedAttentionParams& p = args.op;
    const int thread = threadIdx.x % kThreads, heads = work.num_heads;
    const float2* max_sum = reinterpret_cast<const float2*>(shared);
    const float* out = reinterpret_cast<const float*>(max_sum + kChains * heads);
#pragma unroll 1
    for (int i = thread * 4; i < heads * kHeadDim; i += 4 * kThreads) {
      const int head = i / kHeadDim, element = i % kHeadDim;
      float2 chains[kChains];
      float4 part[kChains];
#pragma unroll
      for (int c = 0; c < kChains; ++c) {
        chains[c] = max_sum[c * heads + head];
        part[c] = *reinterpret_cast<const float4*>(out + (c * heads + head) * kPartRow + element);
      }
      float4 o;
      const float2 all = add_chains(chains, part, o);
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

  // Whether any of the threads says so; what they wrote before is seen by all of them after.
  template <int kThreads>
  __device__ static bool any(bool value) {
    if constexpr (kThreads == 32) {
      const bool result = __any_sync(0xffffffffu, value);
      __syncwarp();
      return result;
    } else {
      int result;
      asm volatile(
          "{\n"
          ".reg .pred one, all;\n"
          "setp.ne.b32 one, %1, 0;\n"
          "barrier.cta.red.or.pred all, 1, %2, one;\n"
          "selp.b32 %0, 1, 0, all;\n"
          "}\n"
          : "=r"(result)
          : "r"(static_cast<int>(value)), "n"(kThreads)
          : "memory");
      return result != 0;
    }
  }

  // Says that a partial sum of the sequence is there; whether the caller is to merge them, all
  // being there then.
  __device__ static bool arrive(const DecodeWork& work, const Plan& plan, std::uint32_t* arrivals) {
    const bool awaits = work.item.num_shared > 0;
    if (awaits && work.split != plan.num_splits - 1) {
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrivals) : "memory");
      return false;
    }
    // Releases what was written here and acquires what others wrote.
    std::uint32_t there;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                 : "=r"(there)
                 : "l"(arrivals)
                 : "memory");
    ++there;
    const auto all = static_cast<std::uint32_t>(plan.num_sums);
    while (awaits && there != all) {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(there) : "l"(arrivals) : "memory");
    }
    if (there == all) *arrivals = 0;
    return there == all;
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

  // Sums on their way to a thread: kParts for each of kAtOnce places, four elements of a row.
  template <int kAtOnce, int kParts>
  struct Parts {
    int at[kAtOnce];  // the places' first elements
    float2 max_sum[kAtOnce][kParts];
    float4 part[kAtOnce][kParts];

    // Those of slots [slot, slot + count), kParts at most.
    __device__ void load(const AttentionArgs& args, int first_head, std::int64_t slot, int count) {
#pragma unroll
      for (int n = 0; n < kParts; ++n) {
        if (n >= count) break;
        const std::int64_t head = (slot + n) * args.op.num_heads + first_head;
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          const float* from = args.partial_out + head * kHeadDim + at[j];
          max_sum[j][n] = __ldcg(args.partial_max_sum + head + at[j] / kHeadDim);
          part[j][n] = __ldcg(reinterpret_cast<const float4*>(from));
        }
      }
    }
  };

  // Merges a sequence's splits. As many of their sums are on their way at once as registers allow.
  template <int kThreads>
  __device__ static void merge_splits(const AttentionArgs& args, const DecodeWork& work,
                                      const Plan& plan) {
    constexpr int kStep = 4 * kThreads, kAtOnce = 128 / kThreads, kParts = 16 / kAtOnce;
    const PagedAttentionParams& p = args.op;
    const int size = work.num_heads * kHeadDim, num_shared = work.item.num_shared;
    for (int first = static_cast<int>(threadIdx.x) % kThreads * 4; first < size;
         first += kStep * kAtOnce) {
      Parts<kAtOnce, kParts> parts;
      Total total[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        // Beyond the last head, the first place again.
        parts.at[j] = first + j * kStep < size ? first + j * kStep : first;
      }
      for (int s = plan.first; s < num_shared; s += kParts / kChains) {
        const int count = kChains * (num_shared - s);
        parts.load(args, work.first_head, work.item.first_slot + kChains * s, count);
#pragma unroll
        for (int n = 0; n < kParts; n += kChains) {
          if (n >= count) break;
#pragma unroll
          for (int j = 0; j < kAtOnce; ++j) {
            float4 split;
            const float2 all = add_chains(parts.max_sum[j] + n, parts.part[j] + n, split);
            total[j].add(all, split);
          }
        }
      }
      for (int s = max(plan.first, num_shared); s < plan.num_splits; s += kParts) {
        const int count = plan.num_splits - s;
        parts.load(args, work.first_head, plan.own_slot + s, count);
#pragma unroll
        for (int n = 0; n < kParts; ++n) {
          if (n >= count) break;
#pragma unroll
          for (int j = 0; j < kAtOnce; ++j) total[j].add(parts.max_sum[j][n], parts.part[j][n]);
        }
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (first + j * kStep >= size) break;
        const int at = parts.at[j];
        const std::int64_t row = work.item.token * p.num_heads + work.first_head + at / kHeadDim;
        store_out(p, row, at % kHeadDim, total[j].out, total[j].sum);
      }
    }
  }

  // The partial sums of the item's split are written: merges the sequence's, if it is the last.
  template <int kThreads>
  __device__ static void finish(const AttentionArgs& args, const DecodeWork& work,
                                const Plan& plan) {
    if (plan.num_sums == 1) return;
    any<kThreads>(false);
    std::uint32_t* arrivals = args.arrivals + work.item.first_slot * gridDim.x + blockIdx.x;
    bool merges = false;
    if (threadIdx.x % kThreads == 0) merges = arrive(work, plan, arrivals);
    if (any<kThreads>(merges)) merge_splits<kThreads>(args, work, plan);
  }
};

}  // namespace pagedcore::cuda
