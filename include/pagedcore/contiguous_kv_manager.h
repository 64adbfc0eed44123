#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <unordered_map>
#include <vector>

#include "pagedcore/export.h"
#include "pagedcore/kv_manager.h"

namespace pagedcore {

// How much a sequence reserves when it is admitted (Kwon et al. 2023, section 6.1).
enum class Reservation : std::int8_t {
  kMax,     // Orca (Max): max_model_len tokens
  kPow2,    // Orca (Pow2): its output length rounded up to a power of two
  kOracle,  // Orca (Oracle): its true length; GroupSpec::max_total_tokens must be that
  kExact,   // its true length without the buddy's rounding: no paper's, a stronger opponent
};

// What paging is measured against: every sequence reserves one chunk for its whole life, nothing is
// shared, a fork copies. Chunks come from a buddy allocator over the pool, powers of two of blocks;
// kExact takes what it needs from anywhere, as if memory were compacted at no cost. For benches.
class PAGEDCORE_API ContiguousKvManager final : public KvManager {
 public:
  ContiguousKvManager(std::int32_t num_blocks, std::int32_t block_size, std::int32_t max_model_len,
                      Reservation reservation);

  BlockAllocator& allocator() override { return allocator_; }
  std::int32_t block_size() const override { return block_size_; }
  BlockTable make_table() override { return BlockTable(allocator_, block_size_); }
  std::int32_t min_blocks(std::int32_t prompt_tokens, std::int32_t num_sequences,
                          std::int32_t max_total_tokens) const override;
  std::int32_t num_blocks_to_admit(const SequenceGroup& group) const override;
  std::int32_t num_blocks_of_whole(const SequenceGroup& group) const override;
  bool try_admit(SequenceGroup& group, std::int32_t headroom,
                 std::vector<BlockCopy>& copies) override;
  bool try_extend(Sequence& sequence, std::int32_t num_tokens,
                  std::vector<BlockCopy>& copies) override;
  void fork(Sequence& parent, Sequence& child, std::vector<BlockCopy>& copies) override;
  void release(Sequence& sequence, bool content_is_good) override;
  std::vector<std::string> check_invariants() const override;

 private:
  std::int32_t chunk_blocks(std::int32_t prompt_tokens, std::int32_t max_total_tokens) const;
  bool try_take_chunk(std::int32_t num_blocks, BlockTable& table);
  void give_chunk_back(BlockTable& table);

  std::int32_t block_size_;
  std::int32_t max_model_len_;
  Reservation reservation_;
  BlockAllocator allocator_;
  std::int32_t max_order_ = 0;
  std::vector<std::set<BlockId>> free_chunks_;  // by order: chunks of 2^order blocks
  std::unordered_map<RequestId, std::vector<BlockTable>> spare_;  // of sequences yet to be forked
};

}  // namespace pagedcore
