#include "cpp/scheduler/paged_kv_manager.h"

#include <algorithm>

#include "pagedcore/error.h"

namespace pagedcore {

PagedKvManager::PagedKvManager(std::int32_t num_blocks, std::int32_t block_size,
                               bool enable_prefix_caching)
    : block_size_(block_size), allocator_(num_blocks) {
  PAGEDCORE_REQUIRE(block_size >= 1, "block_size must be at least 1, got ", block_size);
  if (enable_prefix_caching) cache_.emplace(allocator_, block_size);
}

std::int32_t PagedKvManager::min_blocks(std::int32_t prompt_tokens, std::int32_t num_sequences,
                                        std::int32_t max_total_tokens) const {
  // The last token that a sequence samples is never stored.
  if (max_total_tokens <= prompt_tokens + 1) return blocks_for(prompt_tokens);
  return prompt_tokens / block_size_ + num_sequences;
}

bool PagedKvManager::try_admit(SequenceGroup& group, std::int32_t headroom,
                               std::vector<BlockCopy>& copies) {
  PrefixUse use = cache_ && group.reads_prefix_cache() ? PrefixUse::kTokens : PrefixUse::kNone;
  if (try_place_all(group, use, headroom, copies)) return true;
  // Blocks to copy from stay until the copy is done; without them the group may fit.
  return use == PrefixUse::kTokens &&
         try_place_all(group, PrefixUse::kFullBlocks, headroom, copies);
}

bool PagedKvManager::try_place_all(SequenceGroup& group, PrefixUse use, std::int32_t headroom,
                                   std::vector<BlockCopy>& copies) {
  if (group.num_live() == 1) {
    return try_place(*group.sequences()[0], nullptr, use, headroom, copies);
  }
  // In lexicographic order the neighbour before shares the longest prefix.
  std::vector<Sequence*> sequences;
  for (const auto& sequence : group.sequences()) sequences.push_back(sequence.get());
  std::stable_sort(sequences.begin(), sequences.end(), [](const Sequence* a, const Sequence* b) {
    return std::ranges::lexicographical_compare(a->tokens(), b->tokens());
  });
  const std::size_t num_copies = copies.size();
  const std::size_t num_pins = pins_.size();
  Sequence* sibling = nullptr;
  for (Sequence* sequence : sequences) {
    if (!try_place(*sequence, sibling, use, headroom, copies)) {
      for (const auto& placed : group.sequences()) release(*placed, false);
      copies.resize(num_copies);
      for (; pins_.size() > num_pins; pins_.pop_back()) allocator_.unpin(pins_.back());
      return false;
    }
    sibling = sequence;
  }
  return true;
}

std::int32_t PagedKvManager::num_shareable_blocks(const Sequence& a, const Sequence& b) const {
  const std::size_t limit = std::min(a.tokens().size(), b.tokens().size()) - 1;
  const auto [end, _] =
      std::mismatch(a.tokens().begin(), a.tokens().begin() + limit, b.tokens().begin());
  return static_cast<std::int32_t>(end - a.tokens().begin()) / block_size_;
}

bool PagedKvManager::try_place(Sequence& sequence, Sequence* sibling, PrefixUse use,
                               std::int32_t headroom, std::vector<BlockCopy>& copies) {
  BlockTable& blocks = table(sequence);
  if (blocks.num_blocks() == 0) {
    PrefixMatch match;
    if (use != PrefixUse::kNone) match = cache_->match(sequence.tokens(), sequence.group().salt());
    if (use == PrefixUse::kFullBlocks) match.drop_partial();
    const std::int32_t shared = sibling ? num_shareable_blocks(*sibling, sequence) : 0;
    if (shared > static_cast<std::int32_t>(match.blocks.size())) {
      blocks = table(*sibling).fork(shared * block_size_);
      set_num_computed(sequence, shared * block_size_);
      set_waits_for(sequence, sibling);
    } else if (!try_acquire_prefix(sequence, match, headroom, copies)) {
      return false;
    }
  }
  std::int32_t needed = blocks_for(sequence.num_tokens()) - blocks.num_blocks() + headroom;
  const std::int32_t first = sequence.num_computed() / block_size_;
  if (first < blocks.num_blocks()) needed += allocator_.ref_count(blocks.blocks()[first]) > 1;
  if (needed > allocator_.num_available()) return false;
  PAGEDCORE_CHECK(try_extend(sequence, copies));
  return true;
}

bool PagedKvManager::try_acquire_prefix(Sequence& sequence, const PrefixMatch& match,
                                        std::int32_t headroom, std::vector<BlockCopy>& copies) {
  const auto num_full = static_cast<std::int32_t>(match.blocks.size());
  std::int32_t needed = blocks_for(sequence.num_tokens()) - num_full + headroom;
  for (const BlockId block : match.blocks) needed += !allocator_.is_held(block);
  if (match.partial_tokens > 0 && !allocator_.is_held(match.partial_block)) {
    needed += cache_->num_registered_tokens(match.partial_block) > match.partial_tokens;
  }
  if (needed > allocator_.num_available()) return false;
  if (match.num_tokens > 0) {
    const std::size_t num_copies = copies.size();
    PAGEDCORE_CHECK(cache_->try_acquire(match, table(sequence), copies));
    pin_sources(std::span(copies).subspan(num_copies));
  }
  set_num_computed(sequence, match.num_tokens);
  num_registered_blocks(sequence) = num_full;
  return true;
}

bool PagedKvManager::try_extend(Sequence& sequence, std::vector<BlockCopy>& copies) {
  BlockTable& blocks = table(sequence);
  const std::size_t num_copies = copies.size();
  const std::int32_t begin = sequence.num_computed();
  if (begin == sequence.num_tokens()) return true;
  if (!blocks.try_prepare_write(begin, sequence.num_tokens(), copies)) return false;
  pin_sources(std::span(copies).subspan(num_copies));
  const std::int32_t first = begin / block_size_;
  if (cache_) cache_->before_write(blocks.blocks()[first], begin % block_size_);
  set_writable_end(sequence, static_cast<std::int32_t>(blocks.num_slots()));
  mark_changed(sequence, first);
  return true;
}

void PagedKvManager::fork(Sequence& parent, Sequence& child, std::vector<BlockCopy>&) {
  table(child) = table(parent).fork(child.num_computed());
  num_registered_blocks(child) =
      std::min(num_registered_blocks(parent), child.num_computed() / block_size_);
  set_writable_end(parent, 0);
}

void PagedKvManager::on_blocks_filled(Sequence& sequence) {
  std::int32_t& index = num_registered_blocks(sequence);
  if (!cache_ || index < 0) return;
  BlockTable& blocks = table(sequence);
  for (; (index + 1) * block_size_ <= sequence.num_computed(); ++index) {
    const BlockId parent = index == 0 ? PrefixCache::kNoParent : blocks.blocks()[index - 1];
    const BlockId known =
        cache_->insert(parent, sequence.tokens().subspan(index * block_size_, block_size_),
                       blocks.blocks()[index], sequence.group().salt());
    if (known < 0) {
      index = -1;
      return;
    }
    if (known == blocks.blocks()[index]) continue;
    blocks.replace(index, known);
    mark_changed(sequence, index);
  }
}

void PagedKvManager::release(Sequence& sequence, bool content_is_good) {
  const std::int32_t num_full = num_registered_blocks(sequence);
  const std::int32_t tail = sequence.num_computed() - num_full * block_size_;
  const bool is_known = content_is_good && waits_for(sequence) == nullptr && num_full >= 0;
  if (cache_ && is_known && tail > 0 && tail < block_size_) {
    const auto blocks = sequence.table();
    cache_->insert(num_full == 0 ? PrefixCache::kNoParent : blocks[num_full - 1],
                   sequence.tokens().subspan(num_full * block_size_, tail), blocks[num_full],
                   sequence.group().salt());
  }
  table(sequence).clear();
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
  pins_.clear();
}

std::int32_t PagedKvManager::acquire_salt(std::string_view salt) {
  return cache_ ? cache_->acquire_salt(salt) : 0;
}

void PagedKvManager::release_salt(std::int32_t salt) {
  if (cache_) cache_->release_salt(salt);
}

std::vector<std::string> PagedKvManager::check_invariants() const {
  std::vector<std::string> report = allocator_.check_invariants();
  if (!cache_) return report;
  for (std::string& line : cache_->check_invariants()) report.push_back(std::move(line));
  return report;
}

}  // namespace pagedcore
