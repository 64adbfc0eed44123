#pragma once

#include <cstdint>

namespace pagedcore::cuda {

// What stage() tells the attention kernels of a step, in device memory beside the batch.
struct StepHeader {
  std::int32_t num_tokens = 0;   // of the unpadded batch
  std::int32_t num_seqs = 0;     // of the unpadded batch
  std::int32_t num_items = 0;    // work items of decode attention
  std::int32_t num_prefill = 0;  // sequences with more than one token
  std::int32_t num_splits = 0;   // of the work items, where those of several count as one each
};

// Splits of a decoding sequence: its tokens [split * n, (split + 1) * n), n = split_tokens(length),
// of a whole group of kFold splits where the first one begins it, else of that one alone. Or, of a
// split that several sequences hold in the same blocks, one chain: every kChains'th group of 16
// tokens, as a warp of the one that computes a split alone takes them.
struct DecodeItem {
  std::int32_t token = 0;  // row of query and out; of several: unused
  std::int32_t table_row = 0;
  std::int32_t length = 0;  // tokens of the sequence, the new one included; of several: the least
  std::int32_t part = 0;    // the first split; of several: kChains * split + chain
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
constexpr int kFold = 4;  // splits of a group: those from one multiple of it to the next

// Tokens a split: a function of the sequence's own length alone, so that its sum has the same
// order whatever else is in the batch. Short sequences are not worth a merge; others are cut to
// reach many processors, but not so finely that merges hold up the loads. A multiple of 64; at most
// kMaxSplits splits.
constexpr std::int32_t split_tokens(std::int32_t length) {
  if (length <= 768) return 768;
  const auto parts_of = [=](std::int32_t n) { return (length + n - 1) / n; };
  const auto less = [](std::int32_t a, std::int32_t b) { return a < b ? a : b; };
  const auto more = [](std::int32_t a, std::int32_t b) { return a > b ? a : b; };
  std::int32_t n = more(256, less(512, length / 6));
  n = more(n, less(1024, parts_of(16)));
  n = more(n, parts_of(kMaxSplits));
  return (n + 63) / 64 * 64;
}
// The most splits of any sequence of up to so many tokens.
constexpr std::int64_t max_splits(std::int64_t length) {
  const std::int64_t of_short = (length + 255) / 256, of_long = (length + 1023) / 1024;
  const std::int64_t most = of_long < 16 ? 16 : of_long < kMaxSplits ? of_long : kMaxSplits;
  return of_short < most ? of_short : most;
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
