#pragma once

#include <cstdint>
#include <vector>

#include "cuda/common/plan.h"
#include "pagedcore/forward_batch.h"

namespace pagedcore::cuda {

// The work list of decode attention: the splits of the sequences with one token. Splits that
// several sequences hold in the same blocks are made items of several, which read them once.
// Items stand in an order in which a sequence's last split is behind all its other parts.
class DecodePlan {
 public:
  // No allocation follows for batches of up to `max_seqs` sequences.
  void reserve(std::int64_t max_seqs);
  // Replaces the plan. Without host.block_tables and host.block_size nothing is shared.
  void make(const ForwardBatch& host);

  const std::vector<DecodeItem>& items() const { return items_; }
  // Of the items; those of several count as one each.
  std::int32_t num_splits() const { return num_splits_; }
  // To be laid behind the items.
  const std::vector<DecodeMember>& members() const { return members_; }

  // Bounds for any batch of `max_seqs` sequences of at most `max_splits` splits each.
  static std::int64_t max_bytes(std::int64_t max_seqs);
  static std::int64_t max_slots(std::int64_t max_seqs, std::int64_t max_splits);

 private:
  struct Sequence {
    std::int32_t token, table_row, length, size, num_splits;
    std::int32_t num_shared = 0;  // splits, from the first, that are items of several
    std::int32_t first_slot = 0;
    std::int64_t first_block = -1;
  };
  bool sort_by_first_block(const ForwardBatch& host);
  // Finds what sequences [first, end) share with each other, by their tables.
  void find_shared(const ForwardBatch& host, std::size_t first, std::size_t end);
  void add_shared_items(std::size_t first, std::size_t end);

  std::vector<Sequence> sequences_;
  std::vector<std::int32_t> common_;  // splits that a sequence shares with the one behind it
  std::int64_t num_shared_ = 0;       // sum over the sequences
  std::vector<DecodeItem> items_;
  std::int32_t num_splits_ = 0;
  std::vector<DecodeMember> members_;
};

}  // namespace pagedcore::cuda
