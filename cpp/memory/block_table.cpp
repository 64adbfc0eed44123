#include "pagedcore/block_table.h"

#include <algorithm>
#include <utility>

#include "cpp/base/reserve.h"
#include "pagedcore/error.h"

namespace pagedcore {

BlockTable::BlockTable(BlockAllocator& allocator, std::int32_t block_size)
    : allocator_(&allocator), block_size_(block_size) {
  PAGEDCORE_REQUIRE(block_size >= 1, "block_size must be at least 1, got ", block_size);
}

BlockTable::BlockTable(BlockTable&& other) noexcept
    : allocator_(other.allocator_),
      block_size_(other.block_size_),
      blocks_(std::exchange(other.blocks_, {})) {}

BlockTable& BlockTable::operator=(BlockTable&& other) noexcept {
  if (this == &other) return *this;
  clear();
  allocator_ = other.allocator_;
  block_size_ = other.block_size_;
  blocks_ = std::exchange(other.blocks_, {});
  return *this;
}

std::int64_t BlockTable::slot(std::int64_t position) const {
  PAGEDCORE_REQUIRE(position >= 0 && position < num_slots(), "slot: position must be in [0, ",
                    num_slots(), "), got ", position);
  return std::int64_t{blocks_[position / block_size_]} * block_size_ + position % block_size_;
}

bool BlockTable::try_reserve(std::int64_t num_tokens) {
  const std::int32_t num_missing = blocks_for(num_tokens) - num_blocks();
  if (num_missing <= 0) return true;
  if (num_missing > allocator_->num_available()) return false;
  reserve_more(blocks_, num_missing);
  for (std::int32_t i = 0; i < num_missing; ++i) blocks_.push_back(*allocator_->try_allocate());
  return true;
}

void BlockTable::append_shared(BlockId block) {
  reserve_more(blocks_, 1);
  allocator_->retain(block);
  blocks_.push_back(block);
}

void BlockTable::replace(std::int32_t index, BlockId block) {
  PAGEDCORE_REQUIRE(index >= 0 && index < num_blocks(), "replace: index must be in [0, ",
                    num_blocks(), "), got ", index);
  allocator_->retain(block);
  allocator_->release(std::exchange(blocks_[index], block));
}

bool BlockTable::try_prepare_write(std::int64_t begin, std::int64_t end,
                                   std::vector<BlockCopy>& copies) {
  PAGEDCORE_REQUIRE(begin >= 0 && begin <= end && begin <= num_slots(),
                    "try_prepare_write: [begin, end) must start in the table's ", num_slots(),
                    " slots or right behind them, got [", begin, ", ", end, ")");
  if (begin == end) return true;
  if (begin == num_slots()) return try_reserve(end);
  const std::int32_t first = static_cast<std::int32_t>(begin / block_size_);
  const std::int32_t last = std::min(blocks_for(end), num_blocks());
  std::int32_t needed = std::max(blocks_for(end) - num_blocks(), 0);
  for (std::int32_t i = first; i < last; ++i) needed += allocator_->ref_count(blocks_[i]) > 1;
  if (needed > allocator_->num_available()) return false;
  reserve_more(copies, 1);
  reserve_more(blocks_, needed);
  for (std::int32_t i = first; i < last; ++i) {
    if (allocator_->ref_count(blocks_[i]) == 1) continue;
    const BlockId copy = *allocator_->try_allocate();
    if (i == first && begin % block_size_ != 0) copies.push_back({blocks_[i], copy});
    allocator_->release(std::exchange(blocks_[i], copy));
  }
  return try_reserve(end);
}

void BlockTable::truncate(std::int64_t num_tokens) {
  PAGEDCORE_REQUIRE(num_tokens >= 0, "truncate: num_tokens must not be negative, got ", num_tokens);
  const std::int32_t target = blocks_for(num_tokens);
  while (num_blocks() > target) {
    allocator_->release(blocks_.back());
    blocks_.pop_back();
  }
}

void BlockTable::clear() noexcept {
  for (; !blocks_.empty(); blocks_.pop_back()) {
    // A caller may have dropped our reference behind our back; a destructor must not throw.
    if (allocator_->ref_count(blocks_.back()) > 0) allocator_->release(blocks_.back());
  }
}

BlockTable BlockTable::fork(std::int64_t num_tokens) const {
  BlockTable child(*allocator_, block_size_);
  child.become_fork(*this, num_tokens);
  return child;
}

void BlockTable::become_fork(const BlockTable& parent, std::int64_t num_tokens) {
  PAGEDCORE_REQUIRE(num_tokens >= 0 && num_tokens <= parent.num_slots(),
                    "fork: num_tokens must be in [0, ", parent.num_slots(), "], got ", num_tokens);
  const auto shared = parent.blocks().first(blocks_for(num_tokens));
  blocks_.reserve(shared.size());
  clear();
  blocks_.assign(shared.begin(), shared.end());
  allocator_->retain_held(shared);
}

void BlockTable::reserve_ids(std::int64_t num_tokens) { blocks_.reserve(blocks_for(num_tokens)); }

}  // namespace pagedcore
