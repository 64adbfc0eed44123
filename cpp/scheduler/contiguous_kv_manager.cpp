#include "pagedcore/contiguous_kv_manager.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "pagedcore/error.h"

namespace pagedcore {
namespace {

int order_of(std::int64_t num_blocks) {
  return std::bit_width(static_cast<std::uint64_t>(num_blocks) - 1);
}

}  // namespace

ContiguousKvManager::ContiguousKvManager(std::int32_t num_blocks, std::int32_t block_size,
                                         std::int32_t max_model_len, Reservation reservation)
    : block_size_(block_size),
      max_model_len_(max_model_len),
      reservation_(reservation),
      allocator_(num_blocks) {
  PAGEDCORE_REQUIRE(block_size >= 1, "block_size must be at least 1, got ", block_size);
  PAGEDCORE_REQUIRE(max_model_len >= 1, "max_model_len must be at least 1, got ", max_model_len);
  max_order_ = order_of((max_model_len + block_size - 1) / block_size);
  free_chunks_.resize(max_order_ + 1);
  BlockId start = 0;
  for (int order = max_order_; order >= 0; --order) {
    for (; start + (1 << order) <= num_blocks; start += 1 << order) {
      free_chunks_[order].insert(start);
    }
  }
}

std::int32_t ContiguousKvManager::chunk_blocks(std::int32_t prompt_tokens,
                                               std::int32_t max_total_tokens) const {
  std::int64_t total = max_total_tokens;
  if (reservation_ == Reservation::kMax) total = max_model_len_;
  if (reservation_ == Reservation::kPow2) {
    const std::int32_t output = std::max(max_total_tokens - prompt_tokens, 1);
    total = prompt_tokens + static_cast<std::int64_t>(std::bit_ceil<std::uint32_t>(output));
  }
  total = std::min<std::int64_t>(total, max_model_len_);
  const auto blocks = static_cast<std::int32_t>((total + block_size_ - 1) / block_size_);
  return reservation_ == Reservation::kExact ? blocks : 1 << order_of(blocks);
}

std::int32_t ContiguousKvManager::min_blocks(std::int32_t prompt_tokens, std::int32_t num_sequences,
                                             std::int32_t max_total_tokens) const {
  return num_sequences * chunk_blocks(prompt_tokens, max_total_tokens);
}

std::int32_t ContiguousKvManager::num_blocks_to_admit(const SequenceGroup& group) const {
  const Sequence& first = *group.sequences()[0];
  return group.num_sequences() * chunk_blocks(first.num_prompt_tokens(), group.max_total_tokens());
}

bool ContiguousKvManager::try_take_chunk(std::int32_t num_blocks, BlockTable& table) {
  if (reservation_ == Reservation::kExact) {
    return table.try_reserve(std::int64_t{num_blocks} * block_size_);
  }
  const int wanted = order_of(num_blocks);
  int order = wanted;
  while (order <= max_order_ && free_chunks_[order].empty()) ++order;
  if (order > max_order_) return false;
  const BlockId start = free_chunks_[order].extract(free_chunks_[order].begin()).value();
  while (order > wanted) {
    --order;
    free_chunks_[order].insert(start + (1 << order));
  }
  for (BlockId block = start; block < start + num_blocks; ++block) {
    PAGEDCORE_CHECK(allocator_.try_allocate(block), "block ", block);
    table.append_owned(block);
  }
  return true;
}

void ContiguousKvManager::give_chunk_back(BlockTable& table) {
  if (table.num_blocks() == 0) return;
  BlockId start = table.blocks()[0];
  int order = order_of(table.num_blocks());
  table.clear();
  if (reservation_ == Reservation::kExact) return;
  for (; order < max_order_; ++order) {
    if (free_chunks_[order].erase(start ^ (1 << order)) == 0) break;
    start &= ~(1 << order);
  }
  free_chunks_[order].insert(start);
}

std::int32_t ContiguousKvManager::num_blocks_of_whole(const SequenceGroup& group) const {
  return num_blocks_to_admit(group);
}

bool ContiguousKvManager::try_admit(SequenceGroup& group, std::int32_t /*headroom*/,
                                    std::vector<BlockCopy>& copies) {
  const Sequence& first = *group.sequences()[0];
  const std::int32_t num_blocks = chunk_blocks(first.num_prompt_tokens(), group.max_total_tokens());
  std::vector<BlockTable> chunks;
  for (std::int32_t i = 0; i < group.num_sequences(); ++i) {
    chunks.push_back(make_table());
    if (try_take_chunk(num_blocks, chunks.back())) continue;
    for (BlockTable& chunk : chunks) give_chunk_back(chunk);
    return false;
  }
  for (const auto& sequence : group.sequences()) {
    table(*sequence) = std::move(chunks.back());
    chunks.pop_back();
    try_extend(*sequence, sequence->num_tokens(), copies);
    mark_changed(*sequence, 0);
  }
  spare_[group.request_id()] = std::move(chunks);
  return true;
}

bool ContiguousKvManager::try_extend(Sequence& sequence, std::int32_t num_tokens,
                                     std::vector<BlockCopy>&) {
  const std::int64_t num_slots = table(sequence).num_slots();
  set_writable_end(sequence, static_cast<std::int32_t>(num_slots));
  return num_tokens <= num_slots;
}

void ContiguousKvManager::fork(Sequence& parent, Sequence& child, std::vector<BlockCopy>& copies) {
  std::vector<BlockTable>& spare = spare_[child.request_id()];
  PAGEDCORE_REQUIRE(!spare.empty(), "fork: request ", child.request_id(),
                    " reserved no chunk for another sequence");
  table(child) = std::move(spare.back());
  spare.pop_back();
  const std::int32_t num_filled = (child.num_computed() + block_size_ - 1) / block_size_;
  for (std::int32_t i = 0; i < num_filled; ++i) {
    copies.push_back({parent.table()[i], child.table()[i]});
  }
}

void ContiguousKvManager::release(Sequence& sequence, bool /*content_is_good*/) {
  const SequenceGroup& group = sequence.group();
  std::vector<BlockTable>& spare = spare_[group.request_id()];
  const bool others_run = std::ranges::any_of(group.sequences(), [&](const auto& sibling) {
    return sibling.get() != &sequence && sibling->table().size() > 0;
  });
  if (others_run) {
    spare.push_back(std::move(table(sequence)));  // a beam that forks later may take it
  } else {
    give_chunk_back(table(sequence));
    for (BlockTable& chunk : spare) give_chunk_back(chunk);
    spare_.erase(group.request_id());
  }
  set_num_computed(sequence, 0);
  set_writable_end(sequence, 0);
}

std::vector<std::string> ContiguousKvManager::check_invariants() const {
  std::vector<std::string> report = allocator_.check_invariants();
  if (reservation_ == Reservation::kExact) return report;
  std::int64_t num_free = 0;
  for (int order = 0; order <= max_order_; ++order) {
    num_free += static_cast<std::int64_t>(free_chunks_[order].size()) << order;
  }
  if (num_free != allocator_.num_available()) {
    report.push_back(detail::concat("buddy allocator: ", num_free, " blocks in free chunks, ",
                                    allocator_.num_available(), " are free"));
  }
  return report;
}

}  // namespace pagedcore
