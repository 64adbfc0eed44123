#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pagedcore/kv_manager.h"
#include "pagedcore/prefix_cache.h"

namespace pagedcore {

// Blocks on demand, shared by reference and copied on write, found again by prefix.
// Invariant: where caching is on, the registered blocks of a sequence are its table's first ones,
// so nothing that the entry of a held block stands behind can be evicted.
class PagedKvManager final : public KvManager {
 public:
  PagedKvManager(std::int32_t num_blocks, std::int32_t block_size, bool enable_prefix_caching);

  BlockAllocator& allocator() override { return allocator_; }
  PrefixCache* prefix_cache() { return cache_ ? &*cache_ : nullptr; }
  BlockTable make_table() override { return BlockTable(allocator_, block_size_); }
  std::int32_t min_blocks(std::int32_t prompt_tokens, std::int32_t num_sequences,
                          std::int32_t max_total_tokens) const override;

  bool try_admit(SequenceGroup& group, std::int32_t headroom,
                 std::vector<BlockCopy>& copies) override;
  bool try_extend(Sequence& sequence, std::vector<BlockCopy>& copies) override;
  void fork(Sequence& parent, Sequence& child, std::vector<BlockCopy>& copies) override;
  void on_blocks_filled(Sequence& sequence) override;
  void release(Sequence& sequence, bool content_is_good) override;
  void end_step() override;

  std::int32_t acquire_salt(std::string_view salt) override;
  void release_salt(std::int32_t salt) override;
  std::vector<std::string> check_invariants() const override;

 private:
  std::int32_t blocks_for(std::int32_t num_tokens) const {
    return (num_tokens + block_size_ - 1) / block_size_;
  }
  enum class PrefixUse { kNone, kFullBlocks, kTokens };
  bool try_place_all(SequenceGroup& group, PrefixUse use, std::int32_t headroom,
                     std::vector<BlockCopy>& copies);
  // Gives an idle sequence blocks for all its tokens: what `sibling` shares, else what the prefix
  // cache holds, else new ones. False leaves what it has got so far.
  bool try_place(Sequence& sequence, Sequence* sibling, PrefixUse use, std::int32_t headroom,
                 std::vector<BlockCopy>& copies);
  // Full blocks that both sequences can share, leaving each its last token to compute.
  std::int32_t num_shareable_blocks(const Sequence& a, const Sequence& b) const;
  bool try_acquire_prefix(Sequence& sequence, const PrefixMatch& match, std::int32_t headroom,
                          std::vector<BlockCopy>& copies);
  // Keeps the sources of copies[first, end) as they are until the copies are done.
  void pin_sources(std::span<const BlockCopy> copies);

  std::int32_t block_size_;
  BlockAllocator allocator_;
  std::optional<PrefixCache> cache_;
  std::vector<BlockId> pins_;
};

}  // namespace pagedcore
