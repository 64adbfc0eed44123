#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "pagedcore/export.h"
#include "pagedcore/types.h"

namespace pagedcore {

// Owns the ids of a fixed number of KV blocks and their reference counts; owns no memory. Nothing
// allocates after construction. Not thread-safe.
//
// A block is in one of three states, and free + cached + held == num_blocks() always:
//   held    it has references or pins;
//   cached  it has none, but its content may be asked for again (it is reusable);
//   free    it has none and nobody wants its content.
// Free and cached blocks share one list, which is free list and eviction queue at once: free blocks
// at the front, the last released first; then the cached ones, the least recently released first.
class PAGEDCORE_API BlockAllocator {
 public:
  // Hears that a reusable block's content is given up because its block is needed.
  class EvictionListener {
   public:
    virtual void on_evict(BlockId block) noexcept = 0;

   protected:
    ~EvictionListener() = default;
  };

  explicit BlockAllocator(std::int32_t num_blocks);
  BlockAllocator(const BlockAllocator&) = delete;
  BlockAllocator& operator=(const BlockAllocator&) = delete;

  std::int32_t num_blocks() const { return num_blocks_; }
  std::int32_t num_free() const { return num_free_; }
  std::int32_t num_cached() const { return num_cached_; }
  std::int32_t num_held() const { return num_blocks_ - num_available(); }
  std::int32_t num_available() const { return num_free_ + num_cached_; }  // that can be allocated

  std::int32_t ref_count(BlockId block) const { return blocks_[block].refs; }
  bool is_held(BlockId block) const { return blocks_[block].refs > 0 || blocks_[block].pins > 0; }
  bool is_pinned(BlockId block) const { return blocks_[block].pins > 0; }
  bool is_reusable(BlockId block) const { return blocks_[block].reusable; }

  // Takes a free block, else evicts the least recently released cached one; its one reference is
  // the caller's. Returns nullopt when every block is held. O(1).
  std::optional<BlockId> try_allocate();
  // Takes this very block if it is free or cached.
  bool try_allocate(BlockId block);
  // Adds a reference; revives a cached block. REQUIRES: `block` is held or cached. O(1).
  void retain(BlockId block);
  // Adds a reference to each. REQUIRES: all are held.
  void retain_held(std::span<const BlockId> blocks);
  // Drops a reference. REQUIRES: the block has one. O(1).
  void release(BlockId block);

  // A pinned block keeps its content even where nobody refers to it, and counts as held.
  void pin(BlockId block);
  void unpin(BlockId block);

  // Says whether the content is worth keeping once nobody refers to the block. O(1).
  void set_reusable(BlockId block, bool reusable);
  // Time of the last allocate, retain or release of a block, by the caller's clock.
  std::int64_t last_use(BlockId block) const { return blocks_[block].last_use; }
  void set_clock(std::int64_t now) { now_ = now; }

  void set_eviction_listener(EvictionListener* listener) { listener_ = listener; }

  // One line per violated invariant; empty when all hold.
  std::vector<std::string> check_invariants() const;

 private:
  struct alignas(32) Block {
    std::int32_t refs = 0;
    std::int16_t pins = 0;
    bool reusable = false;
    BlockId prev = -1;
    BlockId next = -1;
    std::int64_t last_use = 0;
  };

  void check_id(BlockId block, const char* where) const;
  void link(BlockId block);    // at the front where free, at the back where cached
  void unlink(BlockId block);  // and counts it out
  void evict(BlockId block);

  std::int32_t num_blocks_;
  std::int32_t num_free_ = 0;
  std::int32_t num_cached_ = 0;
  std::int64_t now_ = 0;
  std::vector<Block> blocks_;  // [num_blocks + 1]; the last is the list's sentinel
  EvictionListener* listener_ = nullptr;
};

inline void BlockAllocator::unlink(BlockId block) {
  const Block& entry = blocks_[block];
  blocks_[entry.prev].next = entry.next;
  blocks_[entry.next].prev = entry.prev;
  --(entry.reusable ? num_cached_ : num_free_);
}

inline std::optional<BlockId> BlockAllocator::try_allocate() {
  const BlockId block = blocks_[num_blocks_].next;
  if (block == num_blocks_) return std::nullopt;
  unlink(block);
  if (blocks_[block].reusable) evict(block);
  blocks_[block].refs = 1;
  blocks_[block].last_use = now_;
  return block;
}

}  // namespace pagedcore
