#pragma once

#include <nv/target>

#include "cuda/common/launch.cuh"
#include "cuda/kernels/decode_boxes.cuh"
#include "cuda/kernels/decode_merge.cuh"

namespace pagedcore::cuda {

// Decode attention: one query token a sequence, the query heads of a KV head packed into the rows
// of a tensor-core tile, so that K and V are read once.
//
// Grid (head tiles, pieces at once): thread blocks walk the step's list, each for one tile of query
// heads; no more are started than the device holds. Block: kChains warps that compute, one that
// merges, one that loads. Shared memory: a ring of stages, barriers, what is merged.
//
// Each role walks the pieces of the list by itself. The loading warp goes ahead through the groups
// of all, as far as the ring reaches: the tokens of earlier steps come before the step's own are
// there, and a few more of them into the L2 cache, so that memory has work until the kernel before
// this one has ended. By one tensor copy a group and 128 bytes of a row (sm_90, blocks of 16 tokens
// or more), else by cp.async.
//
// Item of one sequence: warp w takes each kChains'th group of a split, its chain; the chains are
// merged in order, by the merging warp while the next split is computed, by the computing ones
// where none follows. A block that has all of a group's splits folds them, in order, and leaves one
// sum. The thread block that ends the last of a sequence's splits merges their sums: those of a
// group in order, then the groups, so that it does not matter which groups were folded before.
//
// Item of several: one chain of their common split, loaded once for all of them; warp w computes
// the w'th tile of rows (sequence, head). A row's chain has the operations that it has alone, and
// so the same bits; its sums go to memory. The block of each sequence's last split, which stands
// behind them in the list, awaits and merges them.
//
// Bytes moved: K and V once an item. Method: online softmax, Milakov & Gimelshein 2018; split KV,
// FlashDecoding, Dao et al. 2023; common prefixes, Hydragen, Juravsky et al. 2024.
template <typename KV, int kHeadDim>
struct DecodeAttention {
  using Tile = DecodeTile<KV, kHeadDim>;
  using Merge = DecodeMerge<KV, kHeadDim>;
  using Boxes = DecodeBoxes<KV, kHeadDim>;
  using Row = typename Tile::Row;
  using State = typename Tile::State;
  static constexpr int kTokens = DecodeWork::kTokens;
  static constexpr int kThreads = 32 * (kChains + 2);
  static constexpr int kBlocksPerSm = kHeadDim <= 128 ? 2 : 1;
  static constexpr int kStageBytes = Tile::kStageBytes;
  static constexpr bool kSmallStages = kStageBytes < 8192;
  // Stages on their way to a thread block that shares its processor: more tokens than memory needs
  // come slower, and whatever else is loaded or stored waits behind them.
  static constexpr int kOnTheirWay = (kSmallStages ? 98304 : 65536) / kBlocksPerSm / kStageBytes;
  // By cp.async, a round more of the loading warp's loop would cost more where stages are small:
  // they come as fast as it asks for them, into a ring of so many.
  static constexpr int kUnpacedStages = 131072 / kBlocksPerSm / kStageBytes;
  // Groups that are fetched into the L2 cache when the ring is full for the first time: the kernel
  // before this one still runs, mostly, and asks for nothing any more.
  static constexpr int kAhead = 8;
  // Stages that are asked for together: rounds of the loading warp's loop, which bound how fast it
  // asks, against how evenly loads are on their way. With a processor to itself, a block takes
  // most.
  static constexpr int kMostAtOnce = kChains;
  static constexpr int kAtOnce = kSmallStages ? kMostAtOnce : 2;
  // Query heads of a tile. With more heads of 256, chains and ring would not fit some devices.
  static constexpr int kHeads = kHeadDim <= 128 ? DecodeWork::kRows : DecodeWork::kRows / 2;
  static constexpr int kAlignment = 1024;  // of a stage, as the swizzle of tensor copies asks

  // What the merging warp, idle by then, tells the computing ones of their last split, which they
  // merge: finding it out would delay the launch's end.
  struct Tail {
    DecodeWork work;
    typename Merge::Plan plan;
    std::int32_t split;
    bool begins;
  };
  // Where the computing warps leave the chains of an item for the merging one.
  struct Chains {
    std::uint32_t full, empty;  // barriers, shared memory addresses
    Tail* tail;
    char* data;
  };
  static constexpr int kTailBytes = (static_cast<int>(sizeof(Tail)) + 15) / 16 * 16;

  // Dynamic shared memory of a ring of `stages` and of tiles of `heads`.
  static constexpr int shared_bytes(int stages, int heads) {
    return kAlignment + stages * (kStageBytes + 16) + 16 + kTailBytes + Merge::shared_bytes(heads);
  }
  // Stages that so many bytes hold: whole rounds of the computing warps.
  static constexpr int stages_for(int bytes, int heads) {
    constexpr int kMost = 64;
    const int stages = (bytes - shared_bytes(0, heads)) / (kStageBytes + 16);
    return (stages < kMost ? stages : kMost) / kChains * kChains;
  }
  static_assert(kOnTheirWay % kChains == 0 && stages_for(101376, kHeads) >= kChains);

  // By cp.async: `offset` is that of the lane % 16'th token's row in the layer's K, or -1 where it
  // must not be read.
  __device__ static void copy_rows(const AttentionArgs& args, const DecodeWork& work,
                                   std::int64_t offset, std::uint32_t stage, std::uint32_t full) {
    const KvCacheView& c = args.op.cache;
    const KV* k_base = static_cast<const KV*>(c.data) + args.op.layer * c.layer_stride() +
                       work.kv_head * c.head_stride();
    constexpr int kCopies = kTokens * Tile::kChunks;
#pragma unroll 4
    for (int first = 0; first < kCopies; first += 32) {
      const int i = first + static_cast<int>(threadIdx.x) % 32;
      const int row = i / Tile::kChunks, chunk = i % Tile::kChunks;
      const std::int64_t at = __shfl_sync(0xffffffffu, offset, row % kTokens);
      if (i >= kCopies) continue;
      const KV* k = k_base + (at < 0 ? 0 : at) + chunk * (16 / sizeof(KV));
      const std::uint32_t dst = stage + Tile::offset(row, chunk);
      copy_async16(dst, k, at >= 0);
      copy_async16(dst + Tile::kValues, k + c.kv_stride(), at >= 0);
    }
    barrier_arrive_after_copies(full);
  }

  // Fetches the block table's entries for the first tokens of an item into the L1 cache.
  __device__ static void prefetch_table(const AttentionArgs& args, const DecodeItem& item,
                                        int shift) {
    const std::int32_t split = item.count > 0 ? item.part / kChains : item.part;
    const BlockId* at = args.batch.block_tables + item.table_row * args.batch.table_stride +
                        (split * split_tokens(item.length) >> shift);
    asm volatile("prefetch.global.L1 [%0];" ::"l"(at));
  }

  // The loading warp, by tensor copies: a lane a group, ring.at_once of them together.
  __device__ static void load_boxes(const AttentionArgs& args, const CUtensorMap& map,
                                    const DecodeRing& ring) {
    const int lane = threadIdx.x % 32, at_once = ring.at_once;
    if (lane >= at_once) return;
    sm90::prefetch_map(map);
    DecodeRing::Cursor at;  // of the lane's group
    ring.move(at, lane);
    bool was_full = false;  // the ring
    const auto load_item = [&](const DecodeWork& work, const DecodeItem& next, bool last) {
      const Boxes boxes = Boxes::make(args, map, work);
      const std::int32_t to_next = at_once * work.step;
      for (std::int32_t pass = 0; pass < work.num_passes(); ++pass) {
        std::int32_t token = work.first + lane * work.step;
        BlockId block = boxes.block_of(token);
        for (std::int32_t left = work.num_groups(); left > 0; left -= at_once) {
          const BlockId next_block = boxes.block_of(token + to_next);
          // The step's own token.
          if (left <= at_once && work.end == work.item.length) await_inputs();
          if (lane < left) {
            const std::uint32_t empty = ring.empty_barrier(at);
            if (!was_full && !barrier_passed(empty, at.parity ^ 1)) {
              was_full = true;
              boxes.prefetch(block, token, to_next, kAhead / at_once);
            }
            barrier_wait(empty, at.parity ^ 1);
            DecodeRing::Cursor awaited = at;
            ring.move(awaited, -ring.most_on_their_way);
            barrier_wait(ring.full_barrier(awaited), awaited.parity);
            boxes.copy(block, token, ring.stage(at), ring.full_barrier(at));
          }
          if (!last && pass == 0 && left == work.num_groups()) {
            prefetch_table(args, next, boxes.shift);
          }
          ring.move(at, min(at_once, left));
          token += to_next;
          block = next_block;
        }
      }
    };
    DecodeWork::for_each<kHeads>(args, DecodePieces::make<Merge::kFolds>(args), load_item);
  }

  // The loading warp, by cp.async: all lanes a group.
  __device__ static void load_rows(const AttentionArgs& args, const DecodeRing& ring) {
    const KvCacheView& c = args.op.cache;
    const int lane = threadIdx.x % 32;
    const int shift = __ffs(static_cast<int>(c.block_size)) - 1;
    const int mask = static_cast<int>(c.block_size) - 1;
    DecodeRing::Cursor at, awaited;
    int on_their_way = 0;
    const auto load_item = [&](const DecodeWork& work, const DecodeItem&, bool) {
      const BlockId* table =
          args.batch.block_tables + work.item.table_row * args.batch.table_stride;
      for (std::int32_t pass = 0; pass < work.num_passes(); ++pass) {
        // The lanes hold the table's entries [first_entry, first_entry + 32).
        std::int32_t first_entry = -32;
        BlockId entries = 0;
        for (std::int32_t token = work.first; token < work.end; token += work.step) {
          const std::int32_t last_seen = min(token + kTokens, work.end) - 1;
          if ((last_seen >> shift) >= first_entry + 32) {
            first_entry = max(token, work.start) >> shift;
            entries = __ldg(table + min(first_entry + lane, (work.end - 1) >> shift));
          }
          if (token + kTokens >= work.item.length) await_inputs();  // the step's own token
          barrier_wait(ring.empty_barrier(at), at.parity ^ 1);
          if (!kSmallStages && ++on_their_way > ring.most_on_their_way) {
            barrier_wait(ring.full_barrier(awaited), awaited.parity);
            ring.move(awaited, 1);
          }
          const std::int32_t own = token + lane % kTokens, entry = own >> shift;
          const BlockId block = __shfl_sync(0xffffffffu, entries, (entry - first_entry) & 31);
          const bool seen = own >= work.start && own < work.end;
          const std::int64_t offset =
              seen ? block * c.block_stride() + (own & mask) * kHeadDim : std::int64_t{-1};
          copy_rows(args, work, offset, ring.stage(at), ring.full_barrier(at));
          ring.move(at, 1);
        }
      }
    };
    DecodeWork::for_each<kHeads>(args, DecodePieces::make<Merge::kFolds>(args), load_item);
    copy_wait_all();
  }

  // The rows of the item's sequences from the `first`'th on; of one alone, those of the tile.
  __device__ static void find_rows(const AttentionArgs& args, const DecodeWork& work,
                                   std::int32_t first, Row (&rows)[2]) {
    const DecodeItem& item = work.item;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::int32_t row = static_cast<std::int32_t>(threadIdx.x % 32) / 4 + 8 * r;
      rows[r] = {};
      if (!work.shared()) {
        if (row < work.num_heads) rows[r] = {item.token, work.first_head + row, 0, work.start};
        continue;
      }
      const std::int32_t of = row / work.num_heads, member = first + of;
      if (of >= work.members_a_warp() || member >= item.count) continue;
      const DecodeMember m = DecodeWork::load_member(args, item.first_member + member);
      const std::int32_t start = window_start(m.length - 1, args.op.sliding_window);
      rows[r] = {m.token, work.first_head + row % work.num_heads, m.first_slot + item.part, start};
    }
  }

  // Passes by the item's groups in the ring and adds those that are the warp's.
  __device__ static void add_groups(const AttentionArgs& args, const DecodeWork& work,
                                    const DecodeRing& ring, DecodeRing::Cursor& at,
                                    const Row (&rows)[2], State& state) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    std::uint32_t q[kHeadDim / 16][4];
    Tile::load_query(args.op, rows, q);
    const std::int32_t num_groups = work.num_groups(), every = work.shared() ? 1 : kChains;
    std::int32_t group = work.shared() ? 0 : (warp - work.first / kTokens) & (kChains - 1);
    ring.move(at, group);
    for (; group < num_groups; group += every, ring.move(at, every)) {
      barrier_wait(ring.full_barrier(at), at.parity);
      Tile::step(args, work, rows, work.first + group * work.step, q, ring.stage(at), state);
      __syncwarp();
      // A stage awaits as many arrivals as there are computing warps.
      if (lane < every) barrier_arrive(ring.empty_barrier(at));
    }
    ring.move(at, num_groups - group);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      state.sum[r] += __shfl_xor_sync(0xffffffffu, state.sum[r], 1);
      state.sum[r] += __shfl_xor_sync(0xffffffffu, state.sum[r], 2);
    }
  }

  // A chain of a split that several sequences hold: as many of them at once as the warps have rows.
  __device__ static void add_common(const AttentionArgs& args, const DecodeWork& work,
                                    const DecodeRing& ring, DecodeRing::Cursor& at) {
    const std::int32_t at_once = kChains * work.members_a_warp();
    for (std::int32_t first = 0; first < work.item.count; first += at_once) {
      Row rows[2];
      State state;
      const std::int32_t of_warp = first + threadIdx.x / 32 * work.members_a_warp();
      find_rows(args, work, of_warp, rows);
      add_groups(args, work, ring, at, rows, state);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (rows[r].token < 0 || rows[r].start >= work.end) continue;
        const std::int64_t to = std::int64_t{rows[r].slot} * args.op.num_heads + rows[r].head;
        Tile::store_row(state, r, args.partial_out + to * kHeadDim);
        if (threadIdx.x % 4 == 0) {
          args.partial_max_sum[to] = make_float2(state.max[r], state.sum[r]);
        }
      }
      __syncwarp();
      const std::int32_t lane = threadIdx.x % 32, member = of_warp + lane;
      if (lane >= work.members_a_warp() || member >= work.item.count) continue;
      const DecodeMember m = DecodeWork::load_member(args, work.item.first_member + member);
      if (window_start(m.length - 1, args.op.sliding_window) >= work.end) continue;
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(
                       args.arrivals + m.first_slot * gridDim.x + blockIdx.x)
                   : "memory");
    }
  }

  // Fetches the queries of an item of one sequence into the L1 cache.
  __device__ static void prefetch_query(const AttentionArgs& args, const DecodeWork& work,
                                        const DecodeItem& item) {
    if (item.count > 0) return;
    const std::int64_t head_bytes = kHeadDim * (args.op.query_dtype == DType::kFloat32 ? 4 : 2);
    const char* at = static_cast<const char*>(args.op.query) +
                     (item.token * args.op.num_heads + work.first_head) * head_bytes;
    for (auto i = static_cast<std::int64_t>(threadIdx.x % 32) * 128;
         i < work.num_heads * head_bytes; i += 32 * 128) {
      asm volatile("prefetch.global.L1 [%0];" ::"l"(at + i));
    }
  }

  // Before an item: whatever is in the ring of those before it is there. Else a warp that is ahead
  // could await a stage that still awaits its last filling but one, and take that for its own: a
  // barrier tells apart two phases only. Within an item a stage is always the same warp's.
  __device__ static void sync_computing() {
    asm volatile("bar.sync 1, %0;" ::"n"(32 * kChains) : "memory");
  }

  // A computing warp.
  __device__ static void compute(const AttentionArgs& args, const DecodeRing& ring,
                                 const Chains& chains) {
    DecodeRing::Cursor at;
    int parity = 1;
    bool merges = false;
    const auto compute_item = [&](const DecodeWork& work, const DecodeItem&, bool last) {
      sync_computing();
      await_inputs();
      if (work.shared()) return add_common(args, work, ring, at);
      work.for_each_split([&](const DecodeWork& part, std::int32_t) {
        Row rows[2];
        State state;
        find_rows(args, work, 0, rows);
        add_groups(args, part, ring, at, rows, state);
        barrier_wait(chains.empty, parity);
        parity ^= 1;
        Merge::store_chain(work, chains.data, state);
        if (!last || part.end != work.end) barrier_arrive(chains.full);
      });
      merges = last;
    };
    DecodeWork::for_each<kHeads>(args, DecodePieces::make<Merge::kFolds>(args), compute_item);
    await_inputs();  // a block without items too: the kernel before this one ends first
    if (!merges) return;
    // All chains are stored, and the merging warp has told how to merge them.
    asm volatile("bar.sync 2, %0;" ::"n"(32 * (kChains + 1)) : "memory");
    const Tail& tail = *chains.tail;
    Merge::template merge_chains<32 * kChains>(args, tail.work, tail.split, tail.begins, true,
                                               tail.plan, chains.data);
    Merge::template finish<32 * kChains>(args, tail.work, tail.plan);
  }

  // The merging warp.
  __device__ static void merge(const AttentionArgs& args, const Chains& chains) {
    int parity = 0;
    const auto merge_item = [&](const DecodeWork& work, const DecodeItem& next, bool last) {
      await_inputs();
      if (!last) prefetch_query(args, work, next);
      if (work.shared()) return;
      work.for_each_split([&](const DecodeWork& part, std::int32_t split) {
        const bool ends = part.end == work.end;
        typename Merge::Plan plan{};
        if (ends) plan = Merge::plan(work);
        if (last && ends) {
          if (threadIdx.x % 32 == 0) *chains.tail = {work, plan, split, part.first == work.first};
          __syncwarp();
          asm volatile("bar.arrive 2, %0;" ::"n"(32 * (kChains + 1)) : "memory");
          return;
        }
        barrier_wait(chains.full, parity);
        parity ^= 1;
        Merge::template merge_chains<32>(args, work, split, part.first == work.first, ends, plan,
                                         chains.data);
        barrier_arrive(chains.empty);
        if (ends) Merge::template finish<32>(args, work, plan);
      });
    };
    DecodeWork::for_each<kHeads>(args, DecodePieces::make<Merge::kFolds>(args), merge_item);
  }

  // `tensor`: loads are tensor copies of `map`.
  __device__ static void run(const AttentionArgs& args, const CUtensorMap& map, bool tensor,
                             int stages, int most_on_their_way, int at_once, char* shared) {
    allow_next();
    const std::uint32_t base = smem_address(shared);
    const std::uint32_t ring_at = (base + kAlignment - 1) / kAlignment * kAlignment;
    const std::uint32_t barriers = ring_at + stages * kStageBytes;
    const DecodeRing ring{ring_at,           barriers, barriers + stages * 8, stages, kStageBytes,
                          most_on_their_way, at_once};
    const std::uint32_t more = barriers + stages * 16;
    char* tail = shared + (more + 16 - base);
    const Chains chains{more, more + 8, reinterpret_cast<Tail*>(tail), tail + kTailBytes};
    if (threadIdx.x == 0) {
      for (int i = 0; i < stages; ++i) {
        barrier_init(ring.full + i * 8, tensor ? 1 : 32);
        barrier_init(ring.empty + i * 8, kChains);
      }
      barrier_init(chains.full, 32 * kChains);
      barrier_init(chains.empty, 32);
      NV_IF_TARGET(NV_PROVIDES_SM_90, (barrier_init_fence();))
    }
    __syncthreads();
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
    if (warp < kChains) {
      compute(args, ring, chains);
    } else if (warp == kChains) {
      merge(args, chains);
    } else {
      NV_IF_TARGET(NV_PROVIDES_SM_90, (if (tensor) return load_boxes(args, map, ring);))
      load_rows(args, ring);
    }
  }
};

}  // namespace pagedcore::cuda
