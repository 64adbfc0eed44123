#include "pagedcore/block_allocator.h"

#include "pagedcore/error.h"

namespace pagedcore {

BlockAllocator::BlockAllocator(std::int32_t num_blocks) : num_blocks_(num_blocks) {
  PAGEDCORE_REQUIRE(num_blocks >= 0, "num_blocks must not be negative, got ", num_blocks);
  blocks_.resize(num_blocks + 1);
  blocks_[num_blocks].prev = blocks_[num_blocks].next = num_blocks;
  for (BlockId block = num_blocks - 1; block >= 0; --block) link(block);
}

bool BlockAllocator::try_allocate(BlockId block) {
  check_id(block, "try_allocate");
  if (is_held(block)) return false;
  unlink(block);
  if (blocks_[block].reusable) evict(block);
  blocks_[block].refs = 1;
  blocks_[block].last_use = now_;
  return true;
}

void BlockAllocator::retain(BlockId block) {
  check_id(block, "retain");
  PAGEDCORE_REQUIRE(is_held(block) || blocks_[block].reusable, "retain: block ", block,
                    " is free: nobody holds it and its content is not reusable");
  if (!is_held(block)) unlink(block);
  ++blocks_[block].refs;
  blocks_[block].last_use = now_;
}

void BlockAllocator::retain_held(std::span<const BlockId> blocks) {
  for (const BlockId block : blocks) {
    PAGEDCORE_CHECK(is_held(block), "block ", block);
    ++blocks_[block].refs;
    blocks_[block].last_use = now_;
  }
}

void BlockAllocator::release(BlockId block) {
  check_id(block, "release");
  PAGEDCORE_REQUIRE(blocks_[block].refs > 0, "release: block ", block, " has no reference to drop");
  --blocks_[block].refs;
  blocks_[block].last_use = now_;
  if (!is_held(block)) link(block);
}

void BlockAllocator::pin(BlockId block) {
  check_id(block, "pin");
  PAGEDCORE_REQUIRE(is_held(block) || blocks_[block].reusable, "pin: block ", block, " is free");
  if (!is_held(block)) unlink(block);
  ++blocks_[block].pins;
}

void BlockAllocator::unpin(BlockId block) {
  check_id(block, "unpin");
  PAGEDCORE_REQUIRE(blocks_[block].pins > 0, "unpin: block ", block, " is not pinned");
  --blocks_[block].pins;
  if (!is_held(block)) link(block);
}

void BlockAllocator::set_reusable(BlockId block, bool reusable) {
  check_id(block, "set_reusable");
  if (blocks_[block].reusable == reusable) return;
  const bool listed = !is_held(block);
  if (listed) unlink(block);
  blocks_[block].reusable = reusable;
  if (listed) link(block);
}

void BlockAllocator::check_id(BlockId block, const char* where) const {
  PAGEDCORE_REQUIRE(block >= 0 && block < num_blocks_, where, ": block must be in [0, ",
                    num_blocks_, "), got ", block);
}

void BlockAllocator::link(BlockId block) {
  const bool cached = blocks_[block].reusable;
  const BlockId prev = cached ? blocks_[num_blocks_].prev : num_blocks_;
  const BlockId next = cached ? num_blocks_ : blocks_[num_blocks_].next;
  blocks_[block].prev = prev;
  blocks_[block].next = next;
  blocks_[prev].next = block;
  blocks_[next].prev = block;
  ++(cached ? num_cached_ : num_free_);
}

void BlockAllocator::evict(BlockId block) {
  // Held while the listener runs, which may call set_reusable() on this and other blocks.
  blocks_[block].refs = 1;
  if (listener_ != nullptr) listener_->on_evict(block);
  blocks_[block].reusable = false;
}

std::vector<std::string> BlockAllocator::check_invariants() const {
  std::vector<std::string> report;
  std::vector<bool> listed(num_blocks_, false);
  std::int32_t num_free = 0;
  std::int32_t num_cached = 0;
  bool in_cached_part = false;
  for (BlockId block = blocks_[num_blocks_].next, prev = num_blocks_; block != num_blocks_;
       prev = block, block = blocks_[block].next) {
    if (block < 0 || block > num_blocks_ || listed[block]) {
      report.push_back(detail::concat("allocator: the list is broken at block ", block));
      return report;
    }
    listed[block] = true;
    const Block& entry = blocks_[block];
    ++(entry.reusable ? num_cached : num_free);
    in_cached_part |= entry.reusable;
    if (entry.prev != prev) {
      report.push_back(detail::concat("allocator: block ", block, " links back to ", entry.prev,
                                      ", not to ", prev));
    }
    if (!entry.reusable && in_cached_part) {
      report.push_back(
          detail::concat("allocator: free block ", block, " stands behind a cached one"));
    }
  }
  for (BlockId block = 0; block < num_blocks_; ++block) {
    if (listed[block] == is_held(block)) {
      report.push_back(detail::concat("allocator: block ", block, " has ", blocks_[block].refs,
                                      " references and ", blocks_[block].pins, " pins and is ",
                                      listed[block] ? "" : "not ", "in the list"));
    }
  }
  if (num_free != num_free_ || num_cached != num_cached_) {
    report.push_back(detail::concat("allocator: counts ", num_free_, " free and ", num_cached_,
                                    " cached, the list holds ", num_free, " and ", num_cached));
  }
  return report;
}

}  // namespace pagedcore
