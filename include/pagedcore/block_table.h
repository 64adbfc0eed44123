#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pagedcore/block_allocator.h"
#include "pagedcore/export.h"
#include "pagedcore/types.h"

namespace pagedcore {

// The blocks of one sequence, in order: token p lies in blocks()[p / block_size]. Holds one
// reference to each and drops them, the last block first, when it goes. The allocator must outlive
// it. Not thread-safe.
class PAGEDCORE_API BlockTable {
 public:
  BlockTable(BlockAllocator& allocator, std::int32_t block_size);
  ~BlockTable() { clear(); }
  BlockTable(BlockTable&& other) noexcept;
  BlockTable& operator=(BlockTable&& other) noexcept;

  std::span<const BlockId> blocks() const { return blocks_; }
  std::int32_t num_blocks() const { return static_cast<std::int32_t>(blocks_.size()); }
  std::int32_t block_size() const { return block_size_; }
  std::int64_t num_slots() const { return std::int64_t{num_blocks()} * block_size_; }
  // Where token `position` lies: block * block_size + offset. REQUIRES: the table reaches it.
  std::int64_t slot(std::int64_t position) const;

  // Adds blocks until `num_tokens` tokens fit. All or nothing: false when too few are available.
  bool try_reserve(std::int64_t num_tokens);
  // Appends a block that others may hold too and takes a reference to it.
  void append_shared(BlockId block);
  // Appends a block whose one reference the caller gives away.
  void append_owned(BlockId block) { blocks_.push_back(block); }
  // Holds `block`, of equal content, in place of the one at `index`.
  void replace(std::int32_t index, BlockId block);

  // Readies positions [begin, end) for writing: adds blocks, and takes a private one for each block
  // in the range that others hold too, appending what must be copied to `copies` where its tokens
  // before `begin` matter. All or nothing: false when too few blocks are available.
  bool try_prepare_write(std::int64_t begin, std::int64_t end, std::vector<BlockCopy>& copies);

  // Keeps the blocks of the first `num_tokens` tokens and drops the others, the last first.
  void truncate(std::int64_t num_tokens);
  void clear() noexcept;
  // A table that shares the blocks of the first `num_tokens` tokens. Never allocates a block.
  BlockTable fork(std::int64_t num_tokens) const;
  // Becomes such a table of `parent`, in the room that it has for ids.
  void become_fork(const BlockTable& parent, std::int64_t num_tokens);

  // Room for so many tokens without growing the list of ids.
  void reserve_ids(std::int64_t num_tokens);

 private:
  std::int32_t blocks_for(std::int64_t num_tokens) const {
    return static_cast<std::int32_t>((num_tokens + block_size_ - 1) / block_size_);
  }

  BlockAllocator* allocator_;
  std::int32_t block_size_;
  std::vector<BlockId> blocks_;
};

}  // namespace pagedcore
