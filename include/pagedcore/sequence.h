#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "pagedcore/block_table.h"
#include "pagedcore/export.h"
#include "pagedcore/types.h"

namespace pagedcore {

class SequenceGroup;

// One stream of tokens with its own block table. Made and changed by the scheduler only; callers
// read it. A reference stays good until the sequence is finished or its request aborted.
// Invariant: num_computed <= num_tokens, and the table of a running sequence reaches num_computed.
class PAGEDCORE_API Sequence {
 public:
  Sequence(SequenceId id, SequenceGroup& group, std::vector<TokenId> tokens,
           std::int32_t num_prompt_tokens, BlockTable table);

  SequenceId id() const { return id_; }
  RequestId request_id() const;
  // A small handle, unique among sequences that run: below SchedulerConfig::max_num_seqs, used
  // again when the sequence stops running, and a new one when it resumes. -1 while it does not run.
  std::int32_t index() const { return row_; }

  std::span<const TokenId> tokens() const { return tokens_; }  // prompt, then output
  std::int32_t num_tokens() const { return static_cast<std::int32_t>(tokens_.size()); }
  std::int32_t num_prompt_tokens() const { return num_prompt_tokens_; }
  std::int32_t num_computed() const { return num_computed_; }  // tokens whose KV the cache holds
  std::span<const BlockId> table() const { return table_.blocks(); }
  const SequenceGroup& group() const { return *group_; }

  void* user = nullptr;  // the caller's own; never read here

 private:
  friend class KvManager;
  friend class SchedulerCore;

  SequenceId id_;
  SequenceGroup* group_;
  std::vector<TokenId> tokens_;
  std::int32_t num_prompt_tokens_;
  std::int32_t num_computed_ = 0;
  // Positions below are in blocks that this table alone may write; the slow path begins here.
  std::int32_t writable_end_ = 0;
  std::int32_t num_registered_blocks_ = 0;  // that the prefix cache knows; -1: none may follow
  std::int32_t first_changed_block_ = 0;    // since the last span
  std::int32_t row_ = -1;
  // A sibling that computes the blocks that both share, up to num_computed of this sequence.
  const Sequence* waits_for_ = nullptr;
  BlockTable table_;
};

enum class GroupState : std::int8_t { kWaiting, kRunning, kPreempted, kSwapped };

// The sequences of one request: admitted, scheduled, preempted and resumed together.
class PAGEDCORE_API SequenceGroup {
 public:
  RequestId request_id() const { return request_id_; }
  GroupState state() const { return state_; }
  // In the order in which they were added; finished ones are gone.
  std::span<const std::unique_ptr<Sequence>> sequences() const { return sequences_; }
  std::int32_t num_live() const { return static_cast<std::int32_t>(sequences_.size()); }
  // That the group has once its prompt is computed: its share of max_num_seqs.
  std::int32_t num_sequences() const { return num_sequences_; }
  std::int32_t max_total_tokens() const { return max_total_tokens_; }
  std::int32_t priority() const { return priority_; }
  const std::string& tenant() const { return tenant_; }
  bool reads_prefix_cache() const { return reads_prefix_cache_; }
  std::int32_t salt() const { return salt_; }  // the KvManager's id of the request's cache_salt

  std::int32_t num_queue_steps() const { return num_queue_steps_; }  // planned while it waited
  std::int32_t num_preemptions() const { return num_preemptions_; }

 private:
  friend class KvManager;
  friend class SchedulerCore;

  RequestId request_id_ = 0;
  std::int64_t arrival_ = 0;
  std::int32_t priority_ = 0;
  std::int32_t num_sequences_ = 1;
  std::int32_t max_total_tokens_ = 0;
  std::int32_t salt_ = 0;
  GroupState state_ = GroupState::kWaiting;
  bool reads_prefix_cache_ = true;
  std::int32_t num_queue_steps_ = 0;
  std::int32_t num_preemptions_ = 0;
  std::int64_t enqueued_step_ = 0;
  std::int64_t admitted_step_ = -1;
  std::int64_t num_lost_tokens_ = 0;  // computed before the last preemption
  std::string tenant_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
};

inline RequestId Sequence::request_id() const { return group_->request_id(); }

}  // namespace pagedcore
