// Where PagedKvManager lets the tokens of groups lie that are to run.
#include <algorithm>
#include <utility>

#include "cpp/scheduler/paged_kv_manager.h"
#include "pagedcore/error.h"

namespace pagedcore {

PagedKvManager::PrefixUse PagedKvManager::prefix_use(const SequenceGroup& group) const {
  return cache_ && group.reads_prefix_cache() ? PrefixUse::kTokens : PrefixUse::kNone;
}

std::int32_t PagedKvManager::num_blocks_to_admit(const SequenceGroup& group) const {
  if (group.has_host_blocks()) return num_blocks_to_extend(group);
  std::vector<Placement> placements;
  return plan_placements(group, prefix_use(group), placements);
}

std::int32_t PagedKvManager::num_blocks_of_whole(const SequenceGroup& group) const {
  if (group.num_live() == 1) return blocks_for(group.sequences()[0]->num_tokens());
  std::vector<BlockId> kept;
  if (group.has_host_blocks()) {
    for (const auto& sequence : group.sequences()) {
      kept.insert(kept.end(), sequence->table().begin(), sequence->table().end());
    }
    return num_different(kept) + num_blocks_to_extend(group);
  }
  std::vector<Placement> placements;
  plan_placements(group, prefix_use(group), placements);
  std::int32_t num_new = 0;
  for (const Placement& placement : placements) {
    const auto own = placement.sequence->table();
    const auto& found = placement.match.blocks;
    num_new += blocks_for(placement.sequence->num_tokens());
    if (placement.sibling != nullptr) {
      num_new -= placement.num_shared;
      continue;
    }
    num_new -= static_cast<std::int32_t>(own.size() + found.size());
    kept.insert(kept.end(), own.begin(), own.end());
    kept.insert(kept.end(), found.begin(), found.end());
    const std::size_t first = placement.sequence->num_computed() / block_size_;
    num_new += first < own.size() && allocator_.ref_count(own[first]) > 1;
  }
  return num_new + num_different(kept);
}

bool PagedKvManager::try_admit(SequenceGroup& group, std::int32_t headroom,
                               std::vector<BlockCopy>& copies) {
  PrefixUse use = prefix_use(group);
  std::vector<Placement> placements;
  const std::int32_t limit = allocator_.num_available() - headroom;
  if (plan_placements(group, use, placements) > limit) {
    // Blocks to copy from stay until the copy is done; without them the group may fit.
    use = use == PrefixUse::kTokens ? PrefixUse::kFullBlocks : use;
    if (plan_placements(group, use, placements) > limit) return false;
  }
  // What one sequence found in the cache must outlive the blocks that another takes.
  const std::size_t num_pins = pins_.size();
  for (const Placement& placement : placements) {
    if (placement.sibling != nullptr || placements.size() == 1) continue;
    for (const BlockId block : placement.match.blocks) pins_.push_back(block);
    if (placement.match.partial_tokens > 0) pins_.push_back(placement.match.partial_block);
  }
  for (std::size_t i = num_pins; i < pins_.size(); ++i) allocator_.pin(pins_[i]);
  for (Placement& placement : placements) place(placement, copies);
  return true;
}

std::int32_t PagedKvManager::plan_placements(const SequenceGroup& group, PrefixUse use,
                                             std::vector<Placement>& placements) const {
  placements.clear();
  if (group.num_live() == 1) {
    placements.push_back(plan_placement(*group.sequences()[0], nullptr, use));
    return num_needed(placements);
  }
  // In lexicographic order the neighbour before shares the longest prefix.
  std::vector<Sequence*> sequences;
  for (const auto& sequence : group.sequences()) sequences.push_back(sequence.get());
  std::stable_sort(sequences.begin(), sequences.end(), [&](const Sequence* a, const Sequence* b) {
    const std::int32_t num_common = num_common_tokens(*a, *b);
    return std::ranges::lexicographical_compare(a->tokens().subspan(num_common),
                                                b->tokens().subspan(num_common));
  });
  Sequence* sibling = nullptr;
  for (Sequence* sequence : sequences) {
    placements.push_back(plan_placement(*sequence, sibling, use));
    sibling = sequence;
  }
  return num_needed(placements);
}

PagedKvManager::Placement PagedKvManager::plan_placement(Sequence& sequence, Sequence* sibling,
                                                         PrefixUse use) const {
  Placement placement;
  placement.sequence = &sequence;
  const auto own = sequence.table();
  const auto num_own = static_cast<std::int32_t>(own.size());
  const bool ends_at_block = sequence.num_computed() == num_own * block_size_ &&
                             num_registered_blocks(sequence) == num_own;
  if (use != PrefixUse::kNone && ends_at_block) {
    placement.match = cache_->match_behind(own.empty() ? PrefixCache::kNoParent : own.back(),
                                           sequence.tokens().subspan(num_own * block_size_),
                                           sequence.group().salt());
    if (use == PrefixUse::kFullBlocks) placement.match.drop_partial();
  }
  if (sibling != nullptr) placement.num_shared = num_shareable_blocks(*sibling, sequence);
  if (placement.num_shared > num_own + static_cast<std::int32_t>(placement.match.blocks.size())) {
    placement.sibling = sibling;
  }
  return placement;
}

std::int32_t PagedKvManager::num_shareable_blocks(const Sequence& a, const Sequence& b) const {
  const std::int32_t limit = std::min(a.num_tokens(), b.num_tokens()) - 1;
  return std::min(num_common_tokens(a, b), limit) / block_size_;
}

// What both have computed into blocks that they share need not be compared.
std::int32_t PagedKvManager::num_common_tokens(const Sequence& a, const Sequence& b) const {
  const auto num_blocks = std::ranges::mismatch(a.table(), b.table()).in1 - a.table().begin();
  const std::int32_t begin = std::min(
      {static_cast<std::int32_t>(num_blocks) * block_size_, a.num_computed(), b.num_computed()});
  const auto rest = a.tokens().subspan(begin);
  const auto end = std::ranges::mismatch(rest, b.tokens().subspan(begin)).in1;
  return begin + static_cast<std::int32_t>(end - rest.begin());
}

std::int32_t PagedKvManager::num_different(std::vector<BlockId>& blocks) {
  std::ranges::sort(blocks);
  return static_cast<std::int32_t>(std::unique(blocks.begin(), blocks.end()) - blocks.begin());
}

std::int32_t PagedKvManager::num_copies_to_write(std::vector<BlockId>& written,
                                                 const BlockAllocator& pool) {
  std::int32_t num_copies = 0;
  std::ranges::sort(written);
  for (auto first = written.begin(); first != written.end();) {
    const auto end = std::upper_bound(first, written.end(), *first);
    const auto num_writers = static_cast<std::int32_t>(end - first);
    num_copies += std::min(num_writers, pool.ref_count(*first) - 1);
    first = end;
  }
  return num_copies;
}

std::int32_t PagedKvManager::num_needed(const std::vector<Placement>& placements) const {
  std::int32_t needed = 0;
  std::vector<BlockId> revived;
  std::vector<BlockId> written;
  for (const Placement& placement : placements) {
    const std::int32_t total = blocks_for(placement.sequence->num_tokens());
    if (placement.sibling != nullptr) {
      needed += total - placement.num_shared;
      continue;
    }
    const PrefixMatch& match = placement.match;
    const auto own = placement.sequence->table();
    needed += total - static_cast<std::int32_t>(own.size() + match.blocks.size());
    const std::size_t first = placement.sequence->num_computed() / block_size_;
    if (first < own.size()) written.push_back(own[first]);
    for (const BlockId block : match.blocks) {
      if (!allocator_.is_held(block)) revived.push_back(block);
    }
    if (match.partial_tokens > 0 && !allocator_.is_held(match.partial_block)) {
      // The source of a copy is kept for the step; one sequence alone may take it over instead.
      needed += placements.size() > 1 ||
                cache_->num_registered_tokens(match.partial_block) > match.partial_tokens;
    }
  }
  return needed + num_different(revived) + num_copies_to_write(written, allocator_);
}

void PagedKvManager::place(Placement& placement, std::vector<BlockCopy>& copies) {
  Sequence& sequence = *placement.sequence;
  BlockTable& blocks = table(sequence);
  if (placement.sibling != nullptr) {
    blocks = table(*placement.sibling).fork(placement.num_shared * block_size_);
    set_num_computed(sequence, placement.num_shared * block_size_);
    num_registered_blocks(sequence) = 0;
    set_waits_for(sequence, placement.sibling);
  } else if (placement.match.num_tokens > 0) {
    const std::size_t num_copies = copies.size();
    PAGEDCORE_CHECK(cache_->try_acquire(placement.match, blocks, copies));
    pin_sources(std::span(copies).subspan(num_copies));
    set_num_computed(sequence, sequence.num_computed() + placement.match.num_tokens);
    num_registered_blocks(sequence) += static_cast<std::int32_t>(placement.match.blocks.size());
  }
  PAGEDCORE_CHECK(try_extend(sequence, sequence.num_tokens(), copies));
}

}  // namespace pagedcore
