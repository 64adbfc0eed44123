#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "pagedcore/block_allocator.h"
#include "pagedcore/block_table.h"
#include "pagedcore/export.h"
#include "pagedcore/types.h"

namespace pagedcore {

// What the cache holds of a prompt's beginning. Valid until a block is allocated.
struct PrefixMatch {
  std::int32_t num_tokens = 0;  // that need not be computed
  std::vector<BlockId> blocks;  // full blocks, in order
  BlockId partial_block = -1;   // whose first `partial_tokens` tokens come next, or -1
  std::int32_t partial_tokens = 0;

  void drop_partial() {
    num_tokens -= partial_tokens;
    partial_tokens = 0;
    partial_block = -1;
  }
};

// Finds blocks by the tokens that they hold and all tokens before them. A chained hash finds an
// entry; its parent and its tokens confirm it, so that a collision can never serve another prompt's
// KV. A salt separates tenants: equal tokens under different salts are different.
//
// An entry is a block; entries form one tree per salt. A full entry may have children, a partial
// one (the tail of a sequence) has none. An entry's first num_tokens slots are never written while
// it is registered. Registered blocks are reusable: they stay findable after their last reference
// is dropped, until the allocator needs them. Nothing allocates after construction but new salts.
// The allocator must outlive the cache. Not thread-safe.
class PAGEDCORE_API PrefixCache : private BlockAllocator::EvictionListener {
 public:
  using SaltId = std::int32_t;
  static constexpr BlockId kNoParent = -1;

  // `hash_bits` below 64 serve only to test that collisions do no harm.
  PrefixCache(BlockAllocator& allocator, std::int32_t block_size, int hash_bits = 64);
  ~PrefixCache();
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  // A salt's id, valid until as many release_salt() calls as acquire_salt() calls. "" is 0 always.
  SaltId acquire_salt(std::string_view salt);
  void release_salt(SaltId salt);

  // The longest cached prefix of `tokens`, but never all of them: the last is to be computed.
  PrefixMatch match(std::span<const TokenId> tokens, SaltId salt = 0) const {
    return match_behind(kNoParent, tokens, salt);
  }
  PrefixMatch match(std::span<const TokenId> tokens, std::string_view salt) const;
  // The same for `tokens` that come behind the registered full block `parent`.
  PrefixMatch match_behind(BlockId parent, std::span<const TokenId> tokens, SaltId salt) const;

  // Appends the match to a table that holds full blocks only: shares the full blocks, and shares
  // the partial block where nobody else holds it and nothing behind the match would be overwritten,
  // else copies it. All or nothing: false when a block for the copy is not available.
  bool try_acquire(const PrefixMatch& match, BlockTable& table, std::vector<BlockCopy>& copies);

  // Registers the block that holds `tokens` (at most block_size) behind the registered block
  // `parent`, kNoParent for a prompt's first. Returns the block that is now registered for them:
  // another one where the same content was known already; `block` is then as it was. Returns -1
  // where `parent` is not registered as a full block, or a longer entry already covers the tokens.
  BlockId insert(BlockId parent, std::span<const TokenId> tokens, BlockId block, SaltId salt = 0);
  // Registers the blocks of a table that holds `tokens`, the partial last one too, and puts known
  // blocks of equal content in place of the table's.
  void insert(std::span<const TokenId> tokens, BlockTable& table, std::string_view salt = {});

  // Call before writing at `offset` of a block that one table holds: the entry, if that would spoil
  // it, is forgotten.
  void before_write(BlockId block, std::int32_t offset) {
    if (nodes_[block].num_tokens > offset) forget(block);
  }
  // Drops the entry of a block, and with it the entries behind it.
  void forget(BlockId block);

  bool is_registered(BlockId block) const { return nodes_[block].num_tokens > 0; }
  // Tokens of the block that are findable; 0 where it is not registered.
  std::int32_t num_registered_tokens(BlockId block) const { return nodes_[block].num_tokens; }
  // The chained hash of a registered full block; 0 for others.
  std::int64_t block_hash(BlockId block) const;
  std::int32_t num_blocks() const { return static_cast<std::int32_t>(nodes_.size()); }
  std::int32_t num_entries() const { return num_entries_; }

  std::vector<std::string> check_invariants() const;

 private:
  struct alignas(32) Node {
    std::uint64_t hash = 0;       // of the salt, all tokens before and its own
    std::int32_t num_tokens = 0;  // 0: not registered
    BlockId parent = kNoParent;   // a block, or root_ref() of its salt
    BlockId first_child = -1;     // most recently registered first
    BlockId prev_sibling = -1;
    BlockId next_sibling = -1;
    BlockId next_in_bucket = -1;  // full entries only
  };
  struct Root {
    std::string salt;
    std::uint64_t hash = 0;
    std::int32_t num_users = 0;  // acquire_salt() calls and direct children
    BlockId first_child = -1;
  };

  static BlockId root_ref(SaltId salt) { return -2 - salt; }
  void on_evict(BlockId block) noexcept override { forget(block); }
  std::span<const TokenId> tokens_of(BlockId block) const;
  BlockId& first_child_of(BlockId parent);
  BlockId first_child_of(BlockId parent) const;
  std::uint64_t hash_of(BlockId parent) const;
  std::uint64_t chain(std::uint64_t hash, std::span<const TokenId> tokens) const;
  BlockId find_full(BlockId parent, std::uint64_t hash, std::span<const TokenId> tokens) const;
  // The child of `parent` that agrees with the most first tokens, and with how many.
  std::pair<BlockId, std::int32_t> find_partial(BlockId parent,
                                                std::span<const TokenId> tokens) const;
  void add_node(BlockId block, BlockId parent, std::uint64_t hash, std::span<const TokenId> tokens);
  void remove_node(BlockId block);
  void drop_root_user(SaltId salt);

  BlockAllocator& allocator_;
  std::int32_t block_size_;
  std::uint64_t hash_mask_;
  std::int32_t num_entries_ = 0;
  std::vector<Node> nodes_;       // [num_blocks]
  std::vector<TokenId> tokens_;   // [num_blocks, block_size]
  std::vector<BlockId> buckets_;  // heads of the chains of full entries; a power of two of them
  std::vector<Root> roots_;
  std::vector<SaltId> unused_roots_;
  std::unordered_map<std::string, SaltId> salts_;
};

}  // namespace pagedcore
