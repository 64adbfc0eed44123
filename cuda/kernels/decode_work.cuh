#pragma once

#include "cuda/kernels/attention.cuh"

namespace pagedcore::cuda {

// An item of the step's list (DecodePlan) for one tile of query heads of a KV head: what all warps
// of a thread block of decode attention know of it.
struct DecodeWork {
  static constexpr int kRows = 16;    // of a tensor-core tile
  static constexpr int kTokens = 16;  // of a group; groups lie at absolute positions

  DecodeItem item;
  std::int32_t kv_head, first_head, num_heads;  // heads of the tile
  std::int32_t split, size;                     // which split, of how many tokens
  std::int32_t start;                           // first position that any sequence of it sees
  std::int32_t first, step, end;  // its groups: at first, first + step, ... before end

  __device__ bool shared() const { return item.count > 0; }
  __device__ bool live() const { return start < end; }
  __device__ std::int32_t num_groups() const {
    return first < end ? (end - first + step - 1) / step : 0;
  }
  // Sequences whose rows fill a warp's tile, where the item is of several.
  __device__ std::int32_t members_a_warp() const { return kRows / num_heads; }
  // How often the groups are loaded: the warps have rows for so many sequences at a time.
  __device__ std::int32_t num_passes() const {
    const std::int32_t at_once = kChains * members_a_warp();
    return shared() ? (item.count + at_once - 1) / at_once : 1;
  }

  __device__ static DecodeItem load_item(const AttentionArgs& args, std::int32_t index) {
    const int4* at = reinterpret_cast<const int4*>(args.items) + 2 * index;
    const int4 low = __ldg(at), high = __ldg(at + 1);
    return {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  }
  __device__ static DecodeMember load_member(const AttentionArgs& args, std::int32_t index) {
    const int4 raw = __ldg(reinterpret_cast<const int4*>(args.items) + index);
    return {raw.x, raw.y, raw.z, raw.w};
  }

  // Tiles have up to kHeads heads; a KV head's are blockIdx.x's neighbours.
  template <int kHeads>
  __device__ static DecodeWork make(const AttentionArgs& args, const DecodeItem& item) {
    const std::int32_t group = static_cast<std::int32_t>(args.op.num_heads) /
                               static_cast<std::int32_t>(args.op.cache.num_kv_heads);
    const std::int32_t tiles_a_group = (group + kHeads - 1) / kHeads;
    const auto tile = static_cast<std::int32_t>(blockIdx.x);
    DecodeWork work;
    work.item = item;
    work.kv_head = tile / tiles_a_group;
    const std::int32_t first_row = tile % tiles_a_group * kHeads;
    work.first_head = work.kv_head * group + first_row;
    work.num_heads = min(kHeads, group - first_row);
    work.split = work.shared() ? item.part / kChains : item.part;
    work.size = split_tokens(item.length);
    work.start = window_start(item.length - 1, args.op.sliding_window);
    work.end = min((work.split + 1) * work.size, item.length);
    // Groups that nobody sees are left out; the chain of the others follows from their position.
    work.first = max(work.split * work.size, work.start / kTokens * kTokens);
    work.step = kTokens;
    if (work.shared()) {
      const std::int32_t ahead =
          item.part - work.first / kTokens;  // 0 modulo kChains: of its chain
      work.first += (ahead % kChains + kChains) % kChains * kTokens;
      work.step = kChains * kTokens;
    }
    return work;
  }

  // Calls f(work, next, last) for each item of the thread block of which something is seen; `next`
  // is the item behind it, or itself where it is the last.
  template <int kHeads, typename F>
  __device__ static void for_each(const AttentionArgs& args, F&& f) {
    const std::int32_t num_items = args.header->num_items;
    auto i = static_cast<std::int32_t>(blockIdx.y);
    if (i >= num_items) return;
    DecodeItem item = load_item(args, i);
    while (true) {
      const DecodeWork work = make<kHeads>(args, item);
      i += static_cast<std::int32_t>(gridDim.y);
      if (i < num_items) item = load_item(args, i);
      const bool last = i >= num_items;
      if (work.live()) f(work, item, last);
      if (last) return;
    }
  }
};

// The stages of shared memory through which the tokens of all items pass, one group a stage.
struct DecodeRing {
  std::uint32_t stages, full, empty;  // shared memory addresses
  int num_stages, stage_bytes;
  int most_on_their_way;  // stages that are loaded at once

  struct Cursor {
    int index = 0, parity = 0;
  };
  // REQUIRES: |groups| <= num_stages.
  __device__ void move(Cursor& at, int groups) const {
    at.index += groups;
    if (at.index >= num_stages) at.index -= num_stages, at.parity ^= 1;
    if (at.index < 0) at.index += num_stages, at.parity ^= 1;
  }
  __device__ std::uint32_t stage(const Cursor& at) const { return stages + at.index * stage_bytes; }
  __device__ std::uint32_t full_barrier(const Cursor& at) const { return full + at.index * 8; }
  __device__ std::uint32_t empty_barrier(const Cursor& at) const { return empty + at.index * 8; }
};

}  // namespace pagedcore::cuda
