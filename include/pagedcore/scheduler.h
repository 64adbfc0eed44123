#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pagedcore/export.h"
#include "pagedcore/scheduler_config.h"
#include "pagedcore/scheduler_stats.h"
#include "pagedcore/sequence.h"
#include "pagedcore/step_plan.h"
#include "pagedcore/types.h"

namespace pagedcore {

class KvManager;
class SchedulerCore;

// What add() needs to know of a request.
struct GroupSpec {
  RequestId request_id = 0;
  std::span<const TokenId> prompt = {};
  std::int32_t num_sequences = 1;     // that the group will have once its prompt is computed
  std::int32_t max_total_tokens = 0;  // of its longest sequence; 0: max_model_len
  std::int32_t priority = 0;          // lower runs first
  std::string_view tenant = {};       // for quotas
  std::string_view cache_salt = {};   // separates tenants in the prefix cache
  bool read_prefix_cache = true;      // false where every prompt position must be computed
};

// What restore() needs to know of a sequence.
struct SequenceSpec {
  std::span<const TokenId> tokens = {};
  std::int32_t num_computed = 0;  // whose KV the caller is about to write
  // The first num_shared of these are the same as those of an earlier sequence of the list.
  std::int32_t sibling = -1;
  std::int32_t num_shared = 0;
};

// Decides who runs and where their tokens lie. Knows no phases: a sequence has num_tokens() and
// num_computed(), and steps hand out a token budget until it catches up. Owns the sequences and
// the block bookkeeping; sees no device memory. Not thread-safe.
//
// A call that throws changes nothing. A step: plan = schedule(); the caller does its moves and
// computes its spans; commit(); then for every span that reaches_end: append_token(), fork(),
// finish() or hold() on its sequence.
class PAGEDCORE_API Scheduler {
 public:
  // Pages the KV cache.
  explicit Scheduler(const SchedulerConfig& config);
  // Another manager of the same pool: num_blocks, block_size and enable_prefix_caching are its own.
  Scheduler(const SchedulerConfig& config, std::shared_ptr<KvManager> kv);
  ~Scheduler();
  Scheduler(Scheduler&&) noexcept;
  Scheduler& operator=(Scheduler&&) noexcept;

  // Queues a group with one sequence holding the prompt. Throws InvalidArgument, with the numbers,
  // for a group that can never fit; QueueFull.
  Sequence& add(const GroupSpec& spec);
  // Queues a group that goes on from the first `num_tokens` tokens of a live or held sequence, and
  // then spec.prompt, which may be empty. Shares the blocks; never allocates one.
  Sequence& fork_request(Sequence& sequence, std::int32_t num_tokens, const GroupSpec& spec);
  // Queues a group of sequences that all begin with spec.prompt and whose computed tokens the
  // caller is about to write into the cache. Siblings share blocks as they shared tokens. Where too
  // few blocks are available num_computed() of each is 0, and its tokens will be computed.
  const SequenceGroup& restore(const GroupSpec& spec, std::span<const SequenceSpec> sequences);

  // Plans the next step. The plan is valid until the next call. A call that fails for want of
  // memory has abandoned its plan.
  const StepPlan& schedule();
  // The plan is carried out: computed blocks become findable.
  void commit();
  // In place of commit(): the plan failed, wholly or in part. What it touched is computed again.
  void abandon();
  // In place of commit(): the plan is carried out, but its spans are to be planned again.
  void retract();
  // Whether the next plan is this one's spans, each a token further, and nothing else: all that
  // runs is in this plan and has room for a token more, and nobody waits.
  bool goes_on() const;

  // A token takes the place of a pending one, which drop_pending() takes away.
  void append_token(Sequence& sequence, TokenId token) {
    drop_pending(sequence);
    sequence.tokens_.push_back(token);
  }
  void drop_pending(Sequence& sequence) {
    if (sequence.tokens_.back() == kPendingToken) sequence.tokens_.pop_back();
  }
  // A sibling of a running `sequence` in its group with the same first `num_tokens` tokens, sharing
  // their blocks. Never allocates a block. REQUIRES: the group has fewer than num_sequences.
  Sequence& fork(Sequence& sequence, std::int32_t num_tokens);
  // Takes the memory of `count` calls of fork() or hold_fork() beforehand: these cannot fail then.
  void reserve_forks(Sequence& sequence, std::int32_t count);
  // Ends one sequence and gives its tokens; the group ends with its last. The reference is dead
  // afterwards. An open plan loses its span; the same holds for hold() and abort().
  std::vector<TokenId> finish(Sequence& sequence);
  // Ends one sequence as finish() does, but its tokens and computed blocks stay until release().
  void hold(Sequence& sequence);
  // A held sequence of `tokens` beside a live `sequence`, with the KV of what both begin with.
  Sequence& hold_fork(Sequence& sequence, std::vector<TokenId> tokens);
  std::vector<TokenId> release(Sequence& held_sequence);  // gives its tokens
  // Ends a group wherever it is: waiting, running, preempted or swapped. Held sequences stay.
  void abort(RequestId request_id);

  // The live or held sequence of that id, or null.
  Sequence* find(SequenceId id) const;
  bool has_unfinished() const;

  // A tenant's groups together hold at most so many blocks; 0: no limit.
  void set_tenant_quota(std::string_view tenant, std::int32_t num_blocks);
  // What PreemptionMode::kAuto goes by.
  void set_costs(const PreemptionCosts& costs);

  SchedulerStats stats() const;
  KvMap kv_map() const;
  // One line per violated invariant; empty when all hold.
  std::vector<std::string> check_invariants() const;

 private:
  std::unique_ptr<SchedulerCore> core_;
};

}  // namespace pagedcore
