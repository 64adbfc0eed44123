#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "pagedcore/kv_manager.h"
#include "pagedcore/prefix_cache.h"

namespace pagedcore {

// Blocks on demand, shared by reference, copied on write, found again by prefix.
// Invariant: where caching is on, the registered blocks of a sequence are its table's first ones,
// so whatever an entry of a held block stands behind is held too.
class PagedKvManager final : public KvManager {
 public:
  PagedKvManager(std::int32_t num_blocks, std::int32_t block_size, bool enable_prefix_caching,
                 std::int32_t num_host_blocks);

  BlockAllocator& allocator() override { return allocator_; }
  const BlockAllocator* host_allocator() const override { return &host_; }
  const PrefixCache* prefix_cache() const override { return cache_ ? &*cache_ : nullptr; }
  std::int32_t block_size() const override { return block_size_; }
  BlockTable make_table() override { return BlockTable(allocator_, block_size_); }
  BlockTable make_host_table() override { return BlockTable(host_, block_size_); }
  std::int32_t min_blocks(std::int32_t prompt_tokens, std::int32_t num_sequences,
                          std::int32_t max_total_tokens) const override;
  std::int32_t num_blocks_to_admit(const SequenceGroup& group) const override;
  std::int32_t num_blocks_of_whole(const SequenceGroup& group) const override;
  std::int32_t num_blocks_to_extend(const SequenceGroup& group) const override;

  bool try_admit(SequenceGroup& group, std::int32_t headroom,
                 std::vector<BlockCopy>& copies) override;
  bool try_extend(Sequence& sequence, std::int32_t num_tokens,
                  std::vector<BlockCopy>& copies) override;
  bool can_hold_partially() const override { return true; }
  void extend_partially(Sequence& sequence, std::int32_t num_blocks,
                        std::vector<BlockCopy>& copies) override;
  Tail tail_of(const SequenceGroup& group, std::int32_t num_available) const override;
  void drop(SequenceGroup& group, const Tail& tail) override;
  bool try_swap_out(SequenceGroup& group, const Tail& tail, std::vector<BlockCopy>& moves) override;
  bool try_swap_in(SequenceGroup& group, std::int32_t headroom,
                   std::vector<BlockCopy>& moves) override;
  void fork(Sequence& parent, Sequence& child, std::vector<BlockCopy>& copies) override;
  void on_blocks_filled(Sequence& sequence) override;
  void release(Sequence& sequence, bool content_is_good) override;
  void end_step() override;

  std::int32_t acquire_salt(std::string_view salt) override;
  void release_salt(std::int32_t salt) override;
  std::vector<std::string> check_invariants() const override;

 private:
  enum class PrefixUse { kNone, kFullBlocks, kTokens };

  // Where the blocks of one sequence that is to run come from: what it has, then what the prefix
  // cache holds, or else what `sibling` has; then new ones.
  struct Placement {
    Sequence* sequence = nullptr;
    Sequence* sibling = nullptr;  // null: keeps its own blocks and takes the match
    std::int32_t num_shared = 0;  // blocks of the sibling's table
    PrefixMatch match;            // behind its own blocks
  };

  std::int32_t blocks_for(std::int32_t num_tokens) const {
    return (num_tokens + block_size_ - 1) / block_size_;
  }
  PrefixUse prefix_use(const SequenceGroup& group) const;
  // Fills `placements` in an order in which siblings come first, and returns how many of the
  // available blocks they take.
  std::int32_t plan_placements(const SequenceGroup& group, PrefixUse use,
                               std::vector<Placement>& placements) const;
  Placement plan_placement(Sequence& sequence, Sequence* sibling, PrefixUse use) const;
  std::int32_t num_needed(const std::vector<Placement>& placements) const;
  void place(Placement& placement, std::vector<BlockCopy>& copies);
  // Full blocks that both sequences can share, leaving each its last token to compute.
  std::int32_t num_shareable_blocks(const Sequence& a, const Sequence& b) const;
  std::int32_t num_common_tokens(const Sequence& a, const Sequence& b) const;
  // Blocks that sequences take before they write into `written`, one entry a writer: each needs a
  // copy, but the last of a block's holders writes in place.
  static std::int32_t num_copies_to_write(std::vector<BlockId>& written,
                                          const BlockAllocator& pool);
  static std::int32_t num_different(std::vector<BlockId>& blocks);

  // paged_tails.cpp
  // Keeps the first blocks of a table; what computed tokens the others hold stays findable.
  void cut(Sequence& sequence, std::int32_t num_kept);
  static std::int32_t num_host_blocks(const SequenceGroup& group);  // different ones
  void register_tail(Sequence& sequence);
  void replace(Sequence& sequence, std::int32_t index, BlockId block);  // by one of equal content
  // Keeps the sources of copies as they are until the copies are done.
  void pin_sources(std::span<const BlockCopy> copies);

  std::int32_t block_size_;
  BlockAllocator allocator_;
  BlockAllocator host_;
  std::optional<PrefixCache> cache_;
  std::vector<BlockId> pins_;
  std::vector<BlockId> host_pins_;
};

}  // namespace pagedcore
