// How PagedKvManager places groups that are to run, and how it moves them to the host and back.
#include <algorithm>
#include <utility>

#include "cpp/base/reserve.h"
#include "cpp/scheduler/paged_kv_manager.h"
#include "pagedcore/error.h"

namespace pagedcore {

PagedKvManager::PrefixUse PagedKvManager::prefix_use(const SequenceGroup& group) const {
  return cache_ && group.reads_prefix_cache() ? PrefixUse::kTokens : PrefixUse::kNone;
}

std::int32_t PagedKvManager::num_blocks_to_admit(const SequenceGroup& group) const {
  if (group.state() == GroupState::kSwapped) return num_needed_to_swap_in(group);
  std::vector<Placement> placements;
  return plan_placements(group, prefix_use(group), placements);
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
  reserve_to_place(placements, copies);
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

// Takes the memory that place() needs, so that it cannot fail half-way.
void PagedKvManager::reserve_to_place(std::span<const Placement> placements,
                                      std::vector<BlockCopy>& copies) {
  std::size_t num_pins = 0;
  for (const Placement& placement : placements) {
    table(*placement.sequence).reserve_ids(placement.sequence->num_tokens());
    num_pins += placement.match.blocks.size() + 3;  // a partial match, and a copy of each kind
  }
  reserve_more(pins_, num_pins);
  reserve_more(copies, 2 * placements.size());
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
  std::stable_sort(sequences.begin(), sequences.end(), [](const Sequence* a, const Sequence* b) {
    return std::ranges::lexicographical_compare(a->tokens(), b->tokens());
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
  const std::size_t limit = std::min(a.tokens().size(), b.tokens().size()) - 1;
  const auto [end, _] =
      std::mismatch(a.tokens().begin(), a.tokens().begin() + limit, b.tokens().begin());
  return static_cast<std::int32_t>(end - a.tokens().begin()) / block_size_;
}

std::int32_t PagedKvManager::num_needed(const std::vector<Placement>& placements) const {
  std::int32_t needed = 0;
  std::vector<BlockId> revived;
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
    if (first < own.size()) needed += allocator_.ref_count(own[first]) > 1;
    for (const BlockId block : match.blocks) {
      if (!allocator_.is_held(block)) revived.push_back(block);
    }
    if (match.partial_tokens > 0 && !allocator_.is_held(match.partial_block)) {
      // The source of a copy is kept for the step; one sequence alone may take it over instead.
      needed += placements.size() > 1 ||
                cache_->num_registered_tokens(match.partial_block) > match.partial_tokens;
    }
  }
  if (placements.size() > 1) {
    std::ranges::sort(revived);
    revived.erase(std::unique(revived.begin(), revived.end()), revived.end());
  }
  return needed + static_cast<std::int32_t>(revived.size());
}

void PagedKvManager::place(Placement& placement, std::vector<BlockCopy>& copies) {
  Sequence& sequence = *placement.sequence;
  BlockTable& blocks = table(sequence);
  if (placement.sibling != nullptr) {
    blocks.become_fork(table(*placement.sibling), placement.num_shared * block_size_);
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

bool PagedKvManager::try_swap_out(SequenceGroup& group, std::vector<BlockCopy>& moves) {
  std::unordered_map<BlockId, BlockId> host_of;
  for (const auto& sequence : group.sequences()) {
    for (const BlockId block : sequence->table().first(blocks_for(sequence->num_computed()))) {
      host_of.emplace(block, -1);
    }
  }
  if (static_cast<std::int32_t>(host_of.size()) > host_.num_available()) return false;
  for (const auto& sequence : group.sequences()) {
    host_table(*sequence).reserve_ids(sequence->num_computed());
  }
  reserve_more(moves, host_of.size());
  for (const auto& sequence : group.sequences()) {
    const std::int32_t num_computed = sequence->num_computed();
    BlockTable host = std::move(host_table(*sequence));
    for (const BlockId block : sequence->table().first(blocks_for(num_computed))) {
      BlockId& host_block = host_of.find(block)->second;
      if (host_block >= 0) {
        host.append_shared(host_block);
        continue;
      }
      host_block = *host_.try_allocate();
      host.append_owned(host_block);
      moves.push_back({block, host_block});
    }
    release(*sequence, true);
    host_table(*sequence) = std::move(host);
    set_num_computed(*sequence, num_computed);
  }
  return true;
}

std::int32_t PagedKvManager::num_needed_to_swap_in(const SequenceGroup& group) const {
  std::int32_t needed = 0;
  std::unordered_map<BlockId, std::int32_t> writers;  // of each host block
  for (const auto& sequence : group.sequences()) {
    const auto host = host_table(std::as_const(*sequence)).blocks();
    needed += blocks_for(sequence->num_tokens()) - static_cast<std::int32_t>(host.size());
    for (const BlockId block : host) writers.emplace(block, 0);
    const std::size_t tail = sequence->num_computed() / block_size_;
    if (tail < host.size() && sequence->num_tokens() > sequence->num_computed()) {
      ++writers[host[tail]];
    }
  }
  // One writer of a shared block may be its last holder and writes in place.
  for (const auto& [block, count] : writers) {
    needed += 1 + std::max(0, count - (host_.ref_count(block) == count ? 1 : 0));
  }
  return needed;
}

bool PagedKvManager::try_swap_in(SequenceGroup& group, std::int32_t headroom,
                                 std::vector<BlockCopy>& moves) {
  if (num_needed_to_swap_in(group) + headroom > allocator_.num_available()) return false;
  std::unordered_map<BlockId, BlockId> block_of;
  for (const auto& sequence : group.sequences()) {
    for (const BlockId block : host_table(*sequence).blocks()) block_of.emplace(block, -1);
    table(*sequence).reserve_ids(sequence->num_tokens());
  }
  reserve_more(moves, block_of.size());
  for (const auto& sequence : group.sequences()) {
    BlockTable& blocks = table(*sequence);
    for (const BlockId host_block : host_table(*sequence).blocks()) {
      BlockId& block = block_of.find(host_block)->second;
      if (block >= 0) {
        blocks.append_shared(block);
        continue;
      }
      block = *allocator_.try_allocate();
      blocks.append_owned(block);
      moves.push_back({host_block, block});
    }
    mark_changed(*sequence, 0);
  }
  for (const auto& sequence : group.sequences()) host_table(*sequence).clear();
  return true;
}

}  // namespace pagedcore
