#pragma once

#include <cstdint>
#include <vector>

#include "pagedcore/sequence.h"
#include "pagedcore/types.h"

namespace pagedcore {

// One moment of the scheduler; counters grow from its construction on.
struct SchedulerStats {
  // Slots of the pool: used + reserved + cached + free == total.
  std::int64_t total_slots = 0;
  std::int64_t used_slots = 0;      // hold a token's KV of a live or held sequence
  std::int64_t reserved_slots = 0;  // in held blocks, not written yet
  std::int64_t cached_slots = 0;    // in blocks that nobody holds but prompts may find
  std::int64_t free_slots = 0;
  std::int32_t logical_blocks = 0;   // entries of all tables
  std::int32_t physical_blocks = 0;  // different blocks among them
  std::int32_t held_sequences = 0;   // kept by hold()
  std::int32_t host_blocks_used = 0;

  std::int32_t running_groups = 0;
  std::int32_t running_sequences = 0;
  std::int32_t resumed_groups = 0;  // preempted or swapped, to run again
  std::int32_t waiting_groups = 0;

  std::int64_t num_steps = 0;
  std::int64_t scheduled_tokens = 0;
  // Of groups admitted for the first time, without the tokens that a fork or a load brought.
  std::int64_t prompt_tokens_queried = 0;
  std::int64_t prompt_tokens_hit = 0;  // of these: found in the prefix cache then
  std::int64_t tail_preemptions = 0;
  std::int64_t recompute_preemptions = 0;
  std::int64_t swap_preemptions = 0;
  std::int64_t preempted_tokens = 0;   // whose KV was taken away
  std::int64_t recomputed_tokens = 0;  // computed again after that
  std::int64_t swapped_out_blocks = 0;
  std::int64_t swapped_in_blocks = 0;
  std::int64_t copied_blocks = 0;

  double waste() const {  // share of the held blocks' slots that hold no token
    const std::int64_t held = used_slots + reserved_slots;
    return held == 0 ? 0.0 : static_cast<double>(reserved_slots) / held;
  }
  // Share of the blocks that the tables would take without sharing.
  double shared_savings() const {
    return logical_blocks > 0 ? 1.0 - static_cast<double>(physical_blocks) / logical_blocks : 0.0;
  }
};

enum class BlockState : std::int8_t { kFree, kCached, kHeld };

struct BlockInfo {
  BlockState state = BlockState::kFree;
  std::int32_t ref_count = 0;
  std::int32_t num_findable_tokens = 0;  // by the prefix cache
  std::int64_t hash = 0;                 // chained over all tokens before; 0: not a full block
  std::int64_t last_use = 0;             // step
  std::vector<SequenceId> owners;
};

struct SequenceInfo {
  SequenceId id = 0;
  RequestId request_id = 0;
  GroupState state = GroupState::kWaiting;  // kFinished: held
  std::int32_t num_tokens = 0;
  std::int32_t num_computed = 0;
  std::vector<BlockId> table;
  std::vector<BlockId> host_table;
};

struct KvMap {
  std::int64_t step = 0;
  std::int32_t block_size = 0;
  std::vector<BlockInfo> blocks;  // [num_blocks]
  std::vector<SequenceInfo> sequences;
};

}  // namespace pagedcore
