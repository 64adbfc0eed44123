#include "cpp/scheduler/paged_kv_manager.h"

#include <algorithm>

#include "cpp/base/reserve.h"
#include "pagedcore/error.h"

namespace pagedcore {

PagedKvManager::PagedKvManager(std::int32_t num_blocks, std::int32_t block_size,
                               bool enable_prefix_caching, std::int32_t num_host_blocks)
    : block_size_(block_size), allocator_(num_blocks), host_(num_host_blocks) {
  PAGEDCORE_REQUIRE(block_size >= 1, "block_size must be at least 1, got ", block_size);
  if (enable_prefix_caching) cache_.emplace(allocator_, block_size);
}

std::int32_t PagedKvManager::min_blocks(std::int32_t prompt_tokens, std::int32_t num_sequences,
                                        std::int32_t max_total_tokens) const {
  // The last token that a sequence samples is never stored.
  if (max_total_tokens <= prompt_tokens + 1) return blocks_for(prompt_tokens);
  return prompt_tokens / block_size_ + num_sequences;
}

bool PagedKvManager::try_extend(Sequence& sequence, std::int32_t num_tokens,
                                std::vector<BlockCopy>& copies) {
  BlockTable& blocks = table(sequence);
  const std::int32_t begin = sequence.num_computed();
  if (begin == num_tokens) return true;
  std::int32_t first = blocks.num_blocks();
  if (begin == blocks.num_slots()) {
    if (!blocks.try_reserve(num_tokens)) return false;
  } else {
    first = begin / block_size_;
    const std::size_t num_copies = copies.size();
    reserve_more(pins_, 1);
    if (!blocks.try_prepare_write(begin, num_tokens, copies)) return false;
    pin_sources(std::span(copies).subspan(num_copies));
    const std::int32_t offset = begin % block_size_;
    if (cache_ && offset != 0) cache_->before_write(blocks.blocks()[first], offset);
  }
  set_writable_end(sequence, static_cast<std::int32_t>(blocks.num_slots()));
  mark_changed(sequence, first);
  return true;
}

void PagedKvManager::extend_partially(Sequence& sequence, std::int32_t num_blocks,
                                      std::vector<BlockCopy>& copies) {
  BlockTable& blocks = table(sequence);
  const Placement placement = plan_placement(sequence, nullptr, prefix_use(sequence.group()));
  for (const BlockId block : placement.match.blocks) {
    const std::int32_t cost = allocator_.is_held(block) ? 0 : 1;
    if (cost > num_blocks) break;
    num_blocks -= cost;
    blocks.append_shared(block);
    mark_changed(sequence, blocks.num_blocks() - 1);
    set_num_computed(sequence, sequence.num_computed() + block_size_);
    ++num_registered_blocks(sequence);
  }
  const std::int64_t num_slots = blocks.num_slots() + std::int64_t{num_blocks} * block_size_;
  try_extend(sequence,
             static_cast<std::int32_t>(std::min<std::int64_t>(sequence.num_tokens(), num_slots)),
             copies);
}

void PagedKvManager::fork(Sequence& parent, Sequence& child, std::vector<BlockCopy>&) {
  table(child).become_fork(table(parent), child.num_computed());
  num_registered_blocks(child) =
      std::min(num_registered_blocks(parent), child.num_computed() / block_size_);
  set_writable_end(parent, 0);
}

void PagedKvManager::on_blocks_filled(Sequence& sequence) {
  std::int32_t& index = num_registered_blocks(sequence);
  if (!cache_ || index < 0) return;
  BlockTable& blocks = table(sequence);
  const std::int32_t num_full =
      std::min(sequence.num_computed() / block_size_, blocks.num_blocks());
  for (; index < num_full; ++index) {
    const BlockId parent = index == 0 ? PrefixCache::kNoParent : blocks.blocks()[index - 1];
    const BlockId block = blocks.blocks()[index];
    const BlockId known =
        cache_->insert(parent, sequence.tokens().subspan(index * block_size_, block_size_), block,
                       sequence.group().salt());
    if (known < 0) {
      index = -1;
      return;
    }
    if (known == block) continue;
    replace(sequence, index, known);
    // Siblings go on sharing it.
    for (const auto& sibling : sequence.group().sequences()) {
      const auto held = sibling->table();
      if (index < std::ssize(held) && held[index] == block) replace(*sibling, index, known);
    }
  }
}

void PagedKvManager::replace(Sequence& sequence, std::int32_t index, BlockId block) {
  table(sequence).replace(index, block);
  mark_changed(sequence, index);
}

void PagedKvManager::register_tail(Sequence& sequence) {
  const std::int32_t num_full = num_registered_blocks(sequence);
  const std::int32_t tail = sequence.num_computed() - num_full * block_size_;
  const auto blocks = sequence.table();
  const bool is_stored = num_full >= 0 && num_full < static_cast<std::int32_t>(blocks.size());
  if (!cache_ || !is_stored || tail <= 0 || tail >= block_size_) return;
  cache_->insert(num_full == 0 ? PrefixCache::kNoParent : blocks[num_full - 1],
                 sequence.tokens().subspan(num_full * block_size_, tail), blocks[num_full],
                 sequence.group().salt());
}

void PagedKvManager::release(Sequence& sequence, bool content_is_good) {
  if (content_is_good && waits_for(sequence) == nullptr && !sequence.table().empty()) {
    on_blocks_filled(sequence);
    register_tail(sequence);
  }
  table(sequence).clear();
  host_table(sequence).clear();
  set_num_computed(sequence, 0);
  set_writable_end(sequence, 0);
  set_waits_for(sequence, nullptr);
  num_registered_blocks(sequence) = 0;
}

void PagedKvManager::pin_sources(std::span<const BlockCopy> copies) {
  for (const BlockCopy& copy : copies) {
    allocator_.pin(copy.src);
    pins_.push_back(copy.src);
  }
}

void PagedKvManager::end_step() {
  for (const BlockId block : pins_) allocator_.unpin(block);
  for (const BlockId block : host_pins_) host_.unpin(block);
  pins_.clear();
  host_pins_.clear();
}

std::int32_t PagedKvManager::acquire_salt(std::string_view salt) {
  return cache_ ? cache_->acquire_salt(salt) : 0;
}

void PagedKvManager::release_salt(std::int32_t salt) {
  if (cache_) cache_->release_salt(salt);
}

std::vector<std::string> PagedKvManager::check_invariants() const {
  std::vector<std::string> report = allocator_.check_invariants();
  for (std::string& line : host_.check_invariants()) report.push_back("host " + std::move(line));
  if (!cache_) return report;
  for (std::string& line : cache_->check_invariants()) report.push_back(std::move(line));
  return report;
}

}  // namespace pagedcore
