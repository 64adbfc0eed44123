// How PagedKvManager takes the last blocks of groups, and moves blocks to the host and back.
#include <algorithm>

#include "cpp/scheduler/paged_kv_manager.h"
#include "pagedcore/error.h"

namespace pagedcore {

KvManager::Tail PagedKvManager::tail_of(const SequenceGroup& group,
                                        std::int32_t num_available) const {
  const auto sequences = group.sequences();
  Tail tail;
  for (const auto& sequence : sequences) {
    tail.num_kept.push_back(static_cast<std::int32_t>(sequence->table().size()));
  }
  std::int32_t num_missing = num_available - allocator_.num_available();
  while (num_missing > 0) {
    const auto longest = std::ranges::max_element(tail.num_kept);
    const std::int32_t index = *longest - 1;
    if (index < 0) break;
    const BlockId block = sequences[longest - tail.num_kept.begin()]->table()[index];
    std::int32_t num_holders = 0;
    std::int32_t num_tokens = 0;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const Sequence& sequence = *sequences[i];
      if (tail.num_kept[i] <= index || sequence.table()[index] != block) continue;
      tail.num_kept[i] = index;
      ++num_holders;
      num_tokens = std::max(num_tokens,
                            std::min(sequence.num_computed() - index * block_size_, block_size_));
    }
    const bool is_lost = allocator_.ref_count(block) == num_holders;
    tail.num_blocks += num_tokens > 0;
    tail.num_tokens += num_tokens;
    tail.num_lost_tokens += is_lost ? num_tokens : 0;
    num_missing -= is_lost && !allocator_.is_pinned(block);
  }
  return tail;
}

void PagedKvManager::cut(Sequence& sequence, std::int32_t num_kept) {
  BlockTable& blocks = table(sequence);
  if (blocks.num_blocks() == num_kept) return;
  if (sequence.num_computed() > num_kept * block_size_) {
    on_blocks_filled(sequence);
    register_tail(sequence);
  }
  num_registered_blocks(sequence) = std::min(num_registered_blocks(sequence), num_kept);
  blocks.truncate(num_kept * block_size_);
  set_writable_end(sequence, std::min(writable_end(sequence), num_kept * block_size_));
  mark_changed(sequence, num_kept);
}

void PagedKvManager::drop(SequenceGroup& group, const Tail& tail) {
  for (std::size_t i = 0; i < tail.num_kept.size(); ++i) {
    Sequence& sequence = *group.sequences()[i];
    drop_host_tail(sequence);
    cut(sequence, tail.num_kept[i]);
    set_num_computed(sequence, std::min(sequence.num_computed(), tail.num_kept[i] * block_size_));
  }
}

bool PagedKvManager::try_swap_out(SequenceGroup& group, const Tail& tail,
                                  std::vector<BlockCopy>& moves) {
  if (tail.num_blocks > host_.num_available()) return false;
  std::unordered_map<BlockId, BlockId> host_of;
  for (std::size_t i = 0; i < tail.num_kept.size(); ++i) {
    Sequence& sequence = *group.sequences()[i];
    const BlockTable& blocks = table(sequence);
    const std::int32_t end = std::min(blocks_for(sequence.num_computed()), blocks.num_blocks());
    BlockTable host = make_host_table();
    for (std::int32_t index = tail.num_kept[i]; index < end; ++index) {
      const BlockId block = blocks.blocks()[index];
      const auto [found, is_new] = host_of.try_emplace(block, -1);
      if (!is_new) {
        host.append_shared(found->second);
        continue;
      }
      found->second = *host_.try_allocate();
      host.append_owned(found->second);
      moves.push_back({block, found->second});
      // Nothing else is moved there in this step, whatever becomes of the group.
      host_.pin(found->second);
      host_pins_.push_back(found->second);
    }
    for (const BlockId block : host_table(sequence).blocks()) host.append_shared(block);
    host_table(sequence) = std::move(host);
  }
  for (std::size_t i = 0; i < tail.num_kept.size(); ++i) {
    cut(*group.sequences()[i], tail.num_kept[i]);
  }
  return true;
}

std::int32_t PagedKvManager::num_host_blocks(const SequenceGroup& group) {
  std::vector<BlockId> blocks;
  for (const auto& sequence : group.sequences()) {
    const auto host = sequence->host_table();
    blocks.insert(blocks.end(), host.begin(), host.end());
  }
  return num_different(blocks);
}

std::int32_t PagedKvManager::num_blocks_to_extend(const SequenceGroup& group) const {
  std::int32_t needed = num_host_blocks(group);
  std::vector<BlockId> written;
  std::vector<BlockId> written_on_host;
  for (const auto& sequence : group.sequences()) {
    const auto own = sequence->table();
    const auto host = sequence->host_table();
    needed +=
        blocks_for(sequence->num_tokens()) - static_cast<std::int32_t>(own.size() + host.size());
    if (sequence->num_tokens() == sequence->num_computed()) continue;
    const std::size_t first = sequence->num_computed() / block_size_;
    if (first < own.size()) {
      written.push_back(own[first]);
    } else if (first - own.size() < host.size()) {
      written_on_host.push_back(host[first - own.size()]);
    }
  }
  return needed + num_copies_to_write(written, allocator_) +
         num_copies_to_write(written_on_host, host_);
}

bool PagedKvManager::try_swap_in(SequenceGroup& group, std::int32_t headroom,
                                 std::vector<BlockCopy>& moves) {
  if (num_host_blocks(group) + headroom > allocator_.num_available()) return false;
  std::unordered_map<BlockId, BlockId> block_of;
  for (const auto& sequence : group.sequences()) {
    BlockTable& blocks = table(*sequence);
    mark_changed(*sequence, blocks.num_blocks());
    for (const BlockId host_block : host_table(*sequence).blocks()) {
      const auto [found, is_new] = block_of.try_emplace(host_block, -1);
      if (!is_new) {
        blocks.append_shared(found->second);
        continue;
      }
      found->second = *allocator_.try_allocate();
      blocks.append_owned(found->second);
      moves.push_back({host_block, found->second});
    }
  }
  for (const auto& sequence : group.sequences()) host_table(*sequence).clear();
  return true;
}

}  // namespace pagedcore
