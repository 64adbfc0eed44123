#pragma once

#include "cuda/kernels/attention.cuh"

namespace pagedcore::cuda {

// How the thread blocks of a tile of query heads share the step's list (DecodePlan): they walk
// pieces, block y those of y, y + gridDim.y and so on. A piece is an item, or one of its splits.
struct DecodePieces {
  std::int32_t num_items, num_whole;  // items; those of them that are a piece each, the first ones

  // Whole rounds of the blocks take whole items, which leave one partial sum for kFold splits.
  // Behind them the items are divided, unless that would take as long.
  template <bool kFolds>
  __device__ static DecodePieces make(const AttentionArgs& args) {
    const std::int32_t num_items = args.header->num_items;
    const auto at_once = static_cast<std::int32_t>(gridDim.y);
    if (!kFolds || num_items * kFold <= at_once) return {num_items, 0};
    // Most are one split each: there is little to divide, and empty pieces take time too.
    if (args.header->num_splits < 2 * num_items) return {num_items, num_items};
    const std::int32_t rest = num_items % at_once;
    return {num_items, kFold * rest > (kFold - 1) * at_once ? num_items : num_items - rest};
  }
  __device__ std::int32_t count() const { return num_whole + kFold * (num_items - num_whole); }
  __device__ bool whole(std::int32_t piece) const { return piece < num_whole; }
  __device__ std::int32_t item(std::int32_t piece) const {
    return whole(piece) ? piece : num_whole + (piece - num_whole) / kFold;
  }
  // Of a piece that is not whole: which one of its item.
  __device__ std::int32_t of_item(std::int32_t piece) const { return (piece - num_whole) % kFold; }
};

// A piece of the step's list for one tile of query heads of a KV head: what all warps of a thread
// block of decode attention know of it.
struct DecodeWork {
  static constexpr int kRows = 16;    // of a tensor-core tile
  static constexpr int kTokens = 16;  // of a group; groups lie at absolute positions

  DecodeItem item;
  std::int32_t index, num_whole;                // of the item in the list; whole items there
  std::int32_t kv_head, first_head, num_heads;  // heads of the tile
  std::int32_t first_split, size;               // the first split, of how many tokens
  std::int32_t start;                           // first position that any sequence of it sees
  std::int32_t first, step, end;  // its groups: at first, first + step, ... before end

  __device__ bool shared() const { return item.count > 0; }
  // Whether something of it is seen. Not every item has kFold pieces.
  __device__ bool live() const { return start < end && first_split * size < end; }
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
  // Calls f(part, split) for each of its splits of which something is seen, in order: `part` is
  // this work with the split's groups only. REQUIRES: !shared().
  template <typename F>
  __device__ void for_each_split(F&& f) const {
#pragma unroll 1
    for (std::int32_t split = first_split; split * size < end; ++split) {
      DecodeWork part = *this;
      part.first = max(first, split * size);
      part.end = min(end, (split + 1) * size);
      if (part.first < part.end) f(part, split);
    }
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
  __device__ static DecodeWork make(const AttentionArgs& args, const DecodePieces& pieces,
                                    std::int32_t piece, const DecodeItem& item) {
    const std::int32_t group = static_cast<std::int32_t>(args.op.num_heads) /
                               static_cast<std::int32_t>(args.op.cache.num_kv_heads);
    const std::int32_t tiles_a_group = (group + kHeads - 1) / kHeads;
    const auto tile = static_cast<std::int32_t>(blockIdx.x);
    DecodeWork work;
    work.item = item;
    work.index = pieces.item(piece), work.num_whole = pieces.num_whole;
    work.kv_head = tile / tiles_a_group;
    const std::int32_t first_row = tile % tiles_a_group * kHeads;
    work.first_head = work.kv_head * group + first_row;
    work.num_heads = min(kHeads, group - first_row);
    work.size = split_tokens(item.length);
    work.start = window_start(item.length - 1, args.op.sliding_window);
    const bool divides = !work.shared() && item.part % kFold == 0;
    const std::int32_t of_item = pieces.whole(piece) ? 0 : pieces.of_item(piece);
    work.first_split = (work.shared() ? item.part / kChains : item.part) + of_item;
    std::int32_t num_splits = divides && pieces.whole(piece) ? kFold : 1;
    if (!divides && of_item > 0) num_splits = 0;
    work.end = min((work.first_split + num_splits) * work.size, item.length);
    // Groups that nobody sees are left out; the chain of the others follows from their position.
    work.first = max(work.first_split * work.size, work.start / kTokens * kTokens);
    work.step = kTokens;
    if (work.shared()) {
      const std::int32_t ahead =
          item.part - work.first / kTokens;  // 0 modulo kChains: of its chain
      work.first += (ahead % kChains + kChains) % kChains * kTokens;
      work.step = kChains * kTokens;
    }
    return work;
  }
  // Calls f(work, next, last) for each piece of the thread block of which something is seen; `next`
  // is the item behind it, or its own where it is the last.
  template <int kHeads, typename F>
  __device__ static void for_each(const AttentionArgs& args, const DecodePieces& pieces, F&& f) {
    const std::int32_t count = pieces.count();
    auto piece = static_cast<std::int32_t>(blockIdx.y);
    if (piece >= count) return;
    DecodeItem item = load_item(args, pieces.item(piece));
    while (true) {
      const DecodeWork work = make<kHeads>(args, pieces, piece, item);
      piece += static_cast<std::int32_t>(gridDim.y);
      const bool last = piece >= count;
      if (!last) item = load_item(args, pieces.item(piece));
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
  int at_once;            // stages that are asked for together

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
