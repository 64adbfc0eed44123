#pragma once

#include <cstdint>

namespace pagedcore::cuda {

// What stage() tells the attention kernels of a step, in device memory beside the batch.
struct StepHeader {
  std::int32_t num_tokens = 0;   // of the unpadded batch
  std::int32_t num_seqs = 0;     // of the unpadded batch
  std::int32_t num_items = 0;    // work items of decode attention
  std::int32_t num_prefill = 0;  // sequences with more than one token
  std::int32_t max_members = 1;  // of a work item
};

// One split of a decoding sequence, or of several that hold it in the same blocks: their tokens
// [split * n, (split + 1) * n), where n = split_tokens(length) is the same for each.
struct DecodeItem {
  std::int32_t token = 0;  // row of query and out
  std::int32_t table_row = 0;
  std::int32_t length = 0;  // tokens of the sequence, the new one included; the least of several
  std::int32_t split = 0;
  std::int32_t first_slot = 0;    // of the sequence's partial sums, one a split
  std::int32_t count = 1;         // sequences; of several the above are the first's
  std::int32_t first_member = 0;  // of several: where they lie, counted in DecodeMembers from the
                                  // first item
  std::int32_t unused = 0;
};
static_assert(sizeof(DecodeItem) == 32);

struct DecodeMember {
  std::int32_t token = 0;
  std::int32_t length = 0;
  std::int32_t first_slot = 0;
  std::int32_t unused = 0;
};
static_assert(sizeof(DecodeMember) == 16);

constexpr int kMaxMembers = 4;
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
