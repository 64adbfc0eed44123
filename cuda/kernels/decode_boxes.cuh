#pragma once

#include "cuda/kernels/decode_tile.cuh"
#include "cuda/kernels/wgmma.cuh"

namespace pagedcore::cuda {

// Where the tokens of an item lie for tensor copies. A box holds K and V of a group, 128 bytes of
// each row.
template <typename KV, int kHeadDim>
struct DecodeBoxes {
  using Tile = DecodeTile<KV, kHeadDim>;

  const CUtensorMap& map;
  const BlockId* table;
  std::int32_t last;        // token of the item
  int shift, mask;          // of a position: its entry of the table, its row in the block
  int head, heads_a_block;  // of the layer and KV head in block 0; from one block to the next
  std::uint64_t policy;

  __device__ static DecodeBoxes make(const AttentionArgs& args, const CUtensorMap& map,
                                     const DecodeWork& work) {
    const KvCacheView& c = args.op.cache;
    const int heads_a_layer = 2 * static_cast<int>(c.num_kv_heads);
    return {.map = map,
            .table = args.batch.block_tables + work.item.table_row * args.batch.table_stride,
            .last = work.end - 1,
            .shift = __ffs(static_cast<int>(c.block_size)) - 1,
            .mask = static_cast<int>(c.block_size) - 1,
            .head = static_cast<int>(args.op.layer) * heads_a_layer + work.kv_head,
            .heads_a_block = static_cast<int>(c.num_layers) * heads_a_layer,
            // What several sequences hold may be read again by the next 16.
            .policy = sm90::cache_policy(!work.shared())};
  }
  // The last one behind the item, which is not read.
  __device__ BlockId block_of(std::int32_t token) const {
    return __ldg(table + (min(token, last) >> shift));
  }
  // Copies the group at `token`, which lies in `block`, to a stage.
  __device__ void copy(BlockId block, std::int32_t token, std::uint32_t stage,
                       std::uint32_t full) const {
    sm90::barrier_arrive_expecting(full, Tile::kStageBytes);
#pragma unroll
    for (int s = 0; s < Tile::kSlices; ++s) {
      sm90::copy_box(stage + s * Tile::kSliceBytes, map, s * 64, token & mask, 0,
                     static_cast<int>(block) * heads_a_block + head, full, policy);
    }
  }
  // Fetches up to `count` groups, `step` tokens apart, into the L2 cache.
  __device__ void prefetch(BlockId block, std::int32_t token, std::int32_t step, int count) const {
    for (int n = 0; n < count && token <= last; ++n, token += step, block = block_of(token)) {
#pragma unroll
      for (int s = 0; s < Tile::kSlices; ++s) {
        sm90::prefetch_box(map, s * 64, token & mask, 0,
                           static_cast<int>(block) * heads_a_block + head);
      }
    }
  }
};

}  // namespace pagedcore::cuda
