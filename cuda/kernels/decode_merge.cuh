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
  // Whether thread blocks fold whole groups of splits.
  static constexpr bool kFolds = kHeadDim <= 128;
  static constexpr int kPartRow = kHeadDim + 8;  // floats; eight rows are spread over the banks

  // Shared memory for the chains of tiles of `heads` query heads: [chain][head] (max, sum), then
  // the outputs [chain][head][kPartRow].
  static constexpr int shared_bytes(int heads) {
    return heads * static_cast<int>((kChains + 2) * sizeof(float2) +
                                    (kChains + kFolds) * kPartRow * sizeof(float));
  }

  // Which sums a sequence has. Of its splits [first, num_splits), which are seen, one block each
  // has folded the groups of [whole, end_whole).
  struct Plan {
    std::int32_t first, num_splits;
    std::int32_t whole, end_whole;
    std::int32_t num_sums;  // partial sums of them
    std::int64_t own_slot;  // slot of split s: own_slot + s, unless it is shared
  };
  __device__ static Plan plan(const DecodeWork& work) {
    const DecodeItem& item = work.item;
    Plan plan;
    plan.first = work.start == 0 ? 0 : work.start / work.size;
    plan.num_splits = (item.length + work.size - 1) / work.size;
    const std::int32_t begin = (item.num_shared + kFold - 1) / kFold;  // first group to be folded
    const std::int32_t end = (plan.num_splits + kFold - 1) / kFold;
    // A sequence's items stand one behind the other.
    const std::int32_t ahead = work.num_whole - work.index;
    const std::int32_t group = item.part / kFold;
    std::int32_t whole = group + ahead;  // groups before it are folded
    if (group < begin) whole = begin + ahead - (begin * kFold - item.part);
    whole = max(begin, min(whole, end));
    plan.whole = begin * kFold;
    plan.end_whole = min(whole * kFold, plan.num_splits);
    const auto splits = [&](std::int32_t from, std::int32_t to) {
      return max(0, to - max(from, plan.first));
    };
    plan.num_sums = kChains * splits(0, item.num_shared) +
                    splits(item.num_shared, min(plan.whole, plan.num_splits)) +
                    max(0, whole - max(begin, plan.first / kFold)) +
                    splits(max(plan.end_whole, plan.whole), plan.num_splits);
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

  // What is merged so far: four elements of a row.
  struct Total {
    float max = kNegativeInfinity, sum = 0.0f;
    float4 out = {};

    __device__ float2 max_sum() const { return make_float2(max, sum); }
    __device__ void add(const float2& other, const float4& part) {
      const float max_new = fmaxf(max, other.x);
      const float keep = exp2_approx(max - max_new), factor = exp2_approx(other.x - max_new);
      max = max_new;
      sum = fmaf(other.y, factor, sum * keep);
      out = make_float4(out.x * keep, out.y * keep, out.z * keep, out.w * keep);
      add_scaled(out, part, factor);
    }
  };

  // A computing warp's chain to shared memory.
  __device__ static void store_chain(const DecodeWork& work, char* shared, const State& state) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, heads = work.num_heads;
    float2* max_sum = reinterpret_cast<float2*>(shared);
    float* out = reinterpret_cast<float*>(max_sum + (kChains + 2) * heads);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int head = lane / 4 + 8 * r;
      if (head >= heads) continue;
      const int at = warp * heads + head;
      if (lane % 4 == 0) max_sum[at] = make_float2(state.max[r], state.sum[r]);
      Tile::store_row(state, r, out + at * kPartRow);
    }
  }

  // Merges the chains of a split and folds it with those before. Behind the last, writes the output
  // where nothing else is to be merged, else the partial sums.
  template <int kThreads>
  __device__ static void merge_chains(const AttentionArgs& args, const DecodeWork& work,
                                      std::int32_t split, bool begins, bool ends, const Plan& plan,
                                      char* shared) {
    const PagedAttentionParams& p = args.op;
    const int thread = threadIdx.x % kThreads, heads = work.num_heads;
    float2* max_sum = reinterpret_cast<float2*>(shared);
    float* out = reinterpret_cast<float*>(max_sum + (kChains + 2) * heads);
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
      // What is folded so far: maximum and sum of even splits and of odd ones, as others may read
      // the former while this one is written.
      float2* folded = max_sum + kChains * heads + head;
      float4* folded_out =
          reinterpret_cast<float4*>(out + (kChains * heads + head) * kPartRow + element);
      Total total;
      if (kFolds && !begins) {
        total.max = folded[(split + 1) % 2 * heads].x;
        total.sum = folded[(split + 1) % 2 * heads].y;
        total.out = *folded_out;
      }
      total.add(all, o);
      const std::int64_t query_head = work.first_head + head;
      if (kFolds && !ends) {
        *folded_out = total.out;
        if (element == 0) folded[split % 2 * heads] = total.max_sum();
      } else if (plan.num_sums == 1) {
        store_out(p, work.item.token * p.num_heads + query_head, element, total.out, total.sum);
      } else {
        const std::int64_t at = (plan.own_slot + work.first_split) * p.num_heads + query_head;
        *reinterpret_cast<float4*>(args.partial_out + at * kHeadDim + element) = total.out;
        if (element == 0) args.partial_max_sum[at] = total.max_sum();
      }
    }
    __syncwarp();
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
    if (awaits && work.end != work.item.length) {
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

  // Sums on their way to a thread: four elements of a row of each.
  template <int kCount>
  struct Parts {
    float2 max_sum[kCount];
    float4 part[kCount];

    // Those of `count` slots from `slot` on, `step` apart; kCount at most.
    __device__ void load(const AttentionArgs& args, int head, int element, std::int64_t slot,
                         int step, int count) {
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
        if (n >= count) break;
        const std::int64_t row = (slot + n * step) * args.op.num_heads + head;
        const float* from = args.partial_out + row * kHeadDim + element;
        max_sum[n] = __ldcg(args.partial_max_sum + row);
        part[n] = __ldcg(reinterpret_cast<const float4*>(from));
      }
    }
  };

  // Merges a sequence's splits. As many of their sums are on their way at once as registers allow.
  template <int kThreads>
  __device__ static void merge_splits(const AttentionArgs& args, const DecodeWork& work,
                                      const Plan& plan) {
    constexpr int kAtOnce = kThreads == 32 ? 3 * kChains : 4 * kChains;
    const PagedAttentionParams& p = args.op;
    const int num_shared = work.item.num_shared;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) % kThreads * 4; i < work.num_heads * kHeadDim;
         i += 4 * kThreads) {
      const int head = work.first_head + i / kHeadDim, element = i % kHeadDim;
      Parts<kAtOnce> parts;
      Total total, group;
      // Behind the sum of split `end` - 1.
      const auto end_split = [&](int end) {
        if (end % kFold != 0 && end < plan.num_splits) return;
        total.add(group.max_sum(), group.out);
        group = {};
      };
#pragma unroll 1
      for (int s = plan.first; s < num_shared; s += kAtOnce / kChains) {
        const int count = kChains * (num_shared - s);
        parts.load(args, head, element, work.item.first_slot + kChains * s, 1, count);
#pragma unroll
        for (int n = 0; n < kAtOnce; n += kChains) {
          if (n >= count) break;
          float4 split;
          const float2 all = add_chains(parts.max_sum + n, parts.part + n, split);
          group.add(all, split);
          end_split(s + n / kChains + 1);
        }
      }
      // Splits by themselves, then folded groups, then splits by themselves.
      int s = max(plan.first, num_shared);
#pragma unroll 1
      while (s < plan.num_splits) {
        const bool folded = s >= plan.whole && s < plan.end_whole;
        const int step = folded ? kFold : 1;
        const int end = folded           ? plan.end_whole
                        : s < plan.whole ? min(plan.whole, plan.num_splits)
                                         : plan.num_splits;
        if (folded) s = s / kFold * kFold;
        const int count = (end - s + step - 1) / step;
        parts.load(args, head, element, plan.own_slot + s, step, count);
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          if (n >= count) break;
          group.add(parts.max_sum[n], parts.part[n]);
          end_split(s + (n + 1) * step);
        }
        s += min(count, kAtOnce) * step;
      }
      store_out(p, work.item.token * p.num_heads + head, element, total.out, total.sum);
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
