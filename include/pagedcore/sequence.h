#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pagedcore/block_table.h"
#include "pagedcore/export.h"
#include "pagedcore/types.h"

namespace pagedcore {

class SequenceGroup;

// Stands for a token that is still to be sampled, so that the next step can be planned.
constexpr TokenId kPendingToken = -1;

// One stream of tokens with its own block table. Made and changed by the scheduler only; callers
// read it. A reference stays good until the sequence is finished or its request aborted.
// Invariant: num_computed <= num_tokens; the table, and behind it the blocks that lie on the host,
// reach num_computed.
class PAGEDCORE_API Sequence {
 public:
  Sequence(SequenceId id, SequenceGroup& group, std::vector<TokenId> tokens,
           std::int32_t num_prompt_tokens, BlockTable table, BlockTable host_table);

  SequenceId id() const { return id_; }
  RequestId request_id() const;
  // A small handle, unique among sequences that run: below SchedulerConfig::max_num_seqs, used
  // again when the sequence stops running, and a new one when it resumes. -1 while it does not run.
  std::int32_t index() const { return row_; }

  std::span<const TokenId> tokens() const { return tokens_; }  // prompt, then output
  std::int32_t num_tokens() const { return static_cast<std::int32_t>(tokens_.size()); }
  std::int32_t num_prompt_tokens() const { return num_prompt_tokens_; }
  // Tokens whose KV the cache holds: in the table's blocks, and behind these in host blocks.
  std::int32_t num_computed() const { return num_computed_; }
  std::span<const BlockId> table() const { return table_.blocks(); }
  std::span<const BlockId> host_table() const { return host_table_.blocks(); }
  // After a preemption it still waits for a sibling to compute blocks that both share.
  bool is_rebuilding() const { return waits_for_ != nullptr; }
  const SequenceGroup& group() const { return *group_; }

  // The caller's own; never read here. A decode step touches this cache line only.
  alignas(64) void* user = nullptr;

 private:
  friend class KvManager;
  friend class Scheduler;
  friend class SchedulerCore;

  // Counts the tokens in host blocks as not computed, and gives the blocks up.
  void drop_host_tail();

  std::vector<TokenId> tokens_;
  std::int32_t num_computed_ = 0;
  // Positions below are in blocks that this table alone may write; the slow path begins here.
  std::int32_t writable_end_ = 0;
  std::int32_t max_computed_ = 0;         // num_computed before anything was taken away
  std::int32_t first_changed_block_ = 0;  // since the last span
  // A sibling that computes the blocks that both share, up to num_computed of this sequence.
  const Sequence* waits_for_ = nullptr;
  std::int32_t row_ = -1;
  bool table_changed_ = true;  // since the last span

  SequenceGroup* group_;
  SequenceId id_;
  std::int32_t num_prompt_tokens_;
  std::int32_t num_registered_blocks_ = 0;  // that the prefix cache knows; -1: none may follow
  BlockTable table_;
  BlockTable host_table_;  // where the tokens behind the table's lie after a swap
};

enum class GroupState : std::int8_t { kWaiting, kRunning, kPreempted, kSwapped, kFinished };

// How a group lost blocks, and for whom.
enum class PreemptionKind : std::int8_t {
  kNone,
  kTail,       // its last blocks, computed again
  kRecompute,  // all blocks, computed again
  kSwap,       // its last blocks or all, moved to host blocks and back
};
enum class PreemptionCause : std::int8_t {
  kNone,
  kMemory,    // an earlier group had to grow
  kPriority,  // a group of higher priority came
  kQuota,     // its tenant's share was used up
  kSibling,   // a sequence that others of the group waited for was ended
  kAbandon,   // the step failed that computed it
};

// Groups by priority, then arrival: those first that run first.
using GroupQueue = std::map<std::pair<std::int32_t, std::int64_t>, SequenceGroup*>;

// The sequences of one request: admitted, scheduled, preempted and resumed together.
class PAGEDCORE_API SequenceGroup {
 public:
  RequestId request_id() const { return request_id_; }
  GroupState state() const { return state_; }
  // In the order in which they were added; finished ones are gone.
  std::span<const std::unique_ptr<Sequence>> sequences() const { return sequences_; }
  std::span<const std::unique_ptr<Sequence>> held() const { return held_; }
  std::int32_t num_live() const { return static_cast<std::int32_t>(sequences_.size()); }
  // That the group has once its prompt is computed: its share of max_num_seqs.
  std::int32_t num_sequences() const { return num_sequences_; }
  std::int32_t max_total_tokens() const { return max_total_tokens_; }
  std::int32_t priority() const { return priority_; }
  const std::string& tenant() const { return tenant_; }
  bool has_host_blocks() const;
  bool reads_prefix_cache() const { return reads_prefix_cache_; }
  std::int32_t salt() const { return salt_; }  // the KvManager's id of the request's cache_salt

  // Steps from the request's arrival until it first ran; -1 while it has not.
  std::int64_t num_queue_steps() const { return num_queue_steps_; }
  std::int32_t num_preemptions() const { return num_preemptions_; }
  PreemptionKind last_preemption() const { return last_preemption_; }
  PreemptionCause last_preemption_cause() const { return last_preemption_cause_; }
  std::int64_t num_recomputed_tokens() const { return num_recomputed_tokens_; }

 private:
  friend class KvManager;
  friend class SchedulerCore;

  std::vector<std::unique_ptr<Sequence>> sequences_;
  RequestId request_id_ = 0;
  std::int32_t priority_ = 0;
  std::int32_t num_sequences_ = 1;
  GroupState state_ = GroupState::kWaiting;
  bool is_partial_ = false;         // runs with blocks for only a part of its tokens
  bool waits_with_blocks_ = false;  // forked or restored, and not run yet
  bool reads_prefix_cache_ = true;
  PreemptionKind last_preemption_ = PreemptionKind::kNone;
  PreemptionCause last_preemption_cause_ = PreemptionCause::kNone;

  std::int64_t arrival_ = 0;
  std::int32_t max_total_tokens_ = 0;
  std::int32_t salt_ = 0;
  std::int32_t num_preemptions_ = 0;
  std::int64_t num_queue_steps_ = -1;
  std::int64_t enqueued_step_ = 0;
  std::int64_t admitted_step_ = -1;  // the last time
  std::int64_t preempted_step_ = -1;
  std::int64_t num_recomputed_tokens_ = 0;
  std::string tenant_;
  std::vector<std::unique_ptr<Sequence>> held_;  // ended, their tokens and blocks kept
  // What it needs of memory later, so that nothing fails then: its node of the queues while it is
  // in none, and sequences that forks will be, without tokens.
  GroupQueue::node_type queue_node_;
  std::vector<std::unique_ptr<Sequence>> spare_;
};

inline RequestId Sequence::request_id() const { return group_->request_id(); }

}  // namespace pagedcore
