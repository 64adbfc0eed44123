#pragma once

#include <cstdint>

namespace pagedcore::cuda {

// What stage() tells the attention kernels of a step, in device memory beside the batch.
struct StepHeader {
  std::int32_t num_tokens = 0;   // of the unpadded batch
  std::int32_t num_seqs = 0;     // of the unpadded batch
  std::int32_t num_items = 0;    // work items of decode attention
  std::int32_t num_prefill = 0;  // sequences with more than one token
};

// A split of a decoding sequence: its tokens [split * n, (split + 1) * n), n =
// split_tokens(length). Or, of a split that several sequences hold in the same blocks, one chain:
// every kChains'th group of 16 tokens, as a warp of the one that computes a split alone takes them.
struct DecodeItem {
  std::int32_t token = 0;  // row of query and out; of several: unused
  std::int32_t table_row = 0;
  std::int32_t length = 0;  // tokens of the sequence, the new one included; of several: the least
  std::int32_t part = 0;    // the split; of several: kChains * split + chain
  std::int32_t first_slot = 0;  // of the sequence's partial sums: kChains each of its shared
                                // splits, then one each of the others; of several: unused
  std::int32_t num_shared = 0;  // splits of the sequence, from the first, that are items of several
  std::int32_t count = 0;       // sequences; 0: one alone
  std::int32_t first_member = 0;  // where they lie, counted in DecodeMembers from the first item
};
static_assert(sizeof(DecodeItem) == 32);

struct DecodeMember {
  std::int32_t token = 0;
  std::int32_t length = 0;
  std::int32_t first_slot = 0;
  std::int32_t unused = 0;
};
static_assert(sizeof(DecodeMember) == 16);

constexpr int kChains = 4;
constexpr int kMaxMembers = 16;         // of an item
constexpr int kMaxSharedSplits = 1024;  // summed over the sequences of a step
constexpr int kMaxSplits = 32;

// Tokens a split: a function of the sequence's own length alone, so that its sum has the same
// order whatever else is in the batch. Short sequences are not worth a merge; medium ones are cut
// finely to reach many processors, long ones coarsely. A multiple of 64; at most kMaxSplits splits.
constexpr std::int32_t split_tokens(std::int32_t length) {
  if (length <= 768) return 768;
  std::int32_t n = length / 6;
  n = n < 256 ? 256 : n > 1024 ? 1024 : n;
  const std::int32_t least = length / kMaxSplits + 1;
  n = n < least ? least : n;
  return (n + 63) / 64 * 64;
}

// Hopper's prefill kernel takes keys and values in tiles of so many tokens, by tensor copies of
// prefill_box_tokens() each: those of the tile that lie in one block. Blocks of fewer than eight
// tokens are no whole swizzled tile; it does not serve them, and 0 is returned.
constexpr int kPrefillTileTokens = 128;
constexpr int prefill_box_tokens(int block_size) {
  if (block_size < 8) return 0;
  return block_size < kPrefillTileTokens ? block_size : kPrefillTileTokens;
}

}  // namespace pagedcore::cuda
