#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "cpp/scheduler/running_list.h"
#include "pagedcore/kv_manager.h"
#include "pagedcore/scheduler.h"
#include "pagedcore/sequence.h"
#include "pagedcore/step_plan.h"

namespace pagedcore {

// What is behind Scheduler. Invariants:
//   a group with live sequences is in exactly one of running_, resumed_ and waiting_;
//   a running group's sequences have rows, and blocks for all tokens but those appended since the
//   last plan, unless it is partial;
//   running_ is in queue order; victims come from its end, before the step has planned them.
class SchedulerCore {
 public:
  SchedulerCore(const SchedulerConfig& config, std::shared_ptr<KvManager> kv);
  ~SchedulerCore();

  Sequence& add(const GroupSpec& spec);
  Sequence& fork_request(Sequence& sequence, std::int32_t num_tokens, const GroupSpec& spec);
  const SequenceGroup& restore(const GroupSpec& spec, std::span<const SequenceSpec> sequences);
  const StepPlan& schedule();
  void commit();
  void abandon();
  void retract();
  bool goes_on() const;
  Sequence& fork(Sequence& sequence, std::int32_t num_tokens);
  void reserve_forks(Sequence& sequence, std::int32_t count);
  std::vector<TokenId> finish(Sequence& sequence);
  void hold(Sequence& sequence);
  Sequence& hold_fork(Sequence& sequence, std::vector<TokenId> tokens);
  std::vector<TokenId> release(Sequence& sequence);
  void abort(RequestId request_id);
  Sequence* find(SequenceId id) const;
  bool has_unfinished() const;
  void set_tenant_quota(std::string_view tenant, std::int32_t num_blocks);
  void set_costs(const PreemptionCosts& costs);
  SchedulerStats stats() const;
  KvMap kv_map() const;
  std::vector<std::string> check_invariants() const;

 private:
  static GroupQueue::key_type key(const SequenceGroup& g) { return {g.priority_, g.arrival_}; }
  GroupQueue& queue_of(const SequenceGroup& group);

  // core.cpp: requests come and go
  // Queues a group that fill(group) gives its sequences, or undoes it all.
  template <typename Fill>
  SequenceGroup& enqueue(const GroupSpec& spec, const Fill& fill);
  std::unique_ptr<SequenceGroup> make_group(const GroupSpec& spec);
  void share_computed(Sequence& parent, Sequence& child, std::int32_t num_tokens);
  // Blocks for the computed tokens of a group; false where too few are available.
  bool try_restore(SequenceGroup& group, std::span<const SequenceSpec> specs);
  std::unique_ptr<Sequence> make_sequence(SequenceGroup& group, std::vector<TokenId> tokens,
                                          std::int32_t num_prompt_tokens);
  void remove_from_queue(SequenceGroup& group);
  void release_blocks(Sequence& sequence, bool content_is_good);
  // Takes a sequence out of its group's live ones; siblings that waited for it start again.
  std::unique_ptr<Sequence> detach(Sequence& sequence);
  void end_group(SequenceGroup& group);
  // Takes a sequence that ends out of the plan, if one is open.
  void drop_span(const Sequence& sequence);
  void drop_spare(SequenceGroup& group);
  void erase_if_empty(SequenceGroup& group);
  void set_waits_with_blocks(SequenceGroup& group, bool waits_with_blocks);
  void take_row(Sequence& sequence);
  void give_row_back(Sequence& sequence);

  // plan.cpp: one step
  bool has_place(Sequence& sequence);
  void schedule_running();
  void schedule_catch_up(SequenceGroup& group);
  void grow_partial(SequenceGroup& group);
  bool try_make_whole(SequenceGroup& group, std::int32_t headroom);
  void extend_partially(SequenceGroup& group, std::int32_t num_blocks);
  void set_partial(SequenceGroup& group, bool is_partial);
  static Sequence* only_of(const SequenceGroup& group);
  void plan_span(Sequence& sequence, std::int32_t num_tokens);
  Span make_span(Sequence& sequence, std::int32_t num_tokens);
  void leave_out_ended();
  std::size_t repeat_spans();

  // admit.cpp: who may come, and who begins to run
  void require_feasible(const GroupSpec& spec, std::int64_t num_tokens,
                        std::int32_t num_live) const;
  void admit();
  SequenceGroup* next_to_admit();  // or null; quotas make it pass over some
  bool gains_by_waiting(const SequenceGroup& group) const;
  bool fits_seqs(const SequenceGroup& group) const;
  void reserve_to_run(SequenceGroup& group);
  bool try_run(SequenceGroup& group, std::int32_t headroom);
  bool try_run_partially(SequenceGroup& group);
  void start_running(SequenceGroup& group);
  void note_admission(SequenceGroup& group, std::int32_t num_brought);

  // pressure.cpp: who gives way
  std::int32_t headroom(const SequenceGroup* except) const;  // blocks left to other running groups
  bool lacks_memory_for_partial() const;
  // Gives the sequences of a running group room for their uncomputed tokens, taking it from later
  // groups where it must. False: the group cannot run in this step, or was itself preempted.
  bool make_room(SequenceGroup& group);
  bool make_room_in_quota(SequenceGroup& group);
  bool try_extend(SequenceGroup& group);
  void break_deadlock(SequenceGroup& group, bool same_tenant);
  void make_way_for_priority();
  bool reclaim_from_waiting(const SequenceGroup* except);
  SequenceGroup* last_victim(const SequenceGroup& group, bool same_tenant) const;
  bool gives_tail(const SequenceGroup& group) const;  // can give it and keep the rest
  // Takes blocks from a running group until `num_available` are, where it has so many.
  void take_from(SequenceGroup& victim, std::int32_t num_available, PreemptionCause cause);
  void take_one_from(SequenceGroup& victim, PreemptionCause cause);
  void preempt(SequenceGroup& group, PreemptionCause cause, bool content_is_good);
  bool try_swap_out(SequenceGroup& group, const KvManager::Tail& tail);
  bool is_swap_cheaper(const SequenceGroup& group, const KvManager::Tail& tail) const;
  void note_preemption(SequenceGroup& group, PreemptionKind kind, PreemptionCause cause);
  void report_preempted(const SequenceGroup& group);
  void exceed_capacity(const SequenceGroup& group);
  std::int32_t quota_of(const SequenceGroup& group) const;  // 0: none
  std::int32_t num_blocks_of_tenant(const std::string& tenant) const;
  bool lacks_quota(const SequenceGroup& group) const;  // for all tokens of a running group
  static bool is_rebuilding(const SequenceGroup& group);

  // introspect.cpp
  void check_queues(std::vector<std::string>& report) const;
  void check_sequences(std::vector<std::string>& report) const;

  SchedulerConfig config_;
  std::shared_ptr<KvManager> kv_;
  std::unordered_map<RequestId, std::unique_ptr<SequenceGroup>> groups_;
  std::unordered_map<SequenceId, Sequence*> sequences_;
  RunningList running_;
  GroupQueue resumed_;  // preempted and swapped groups: they run before anything that waits
  GroupQueue waiting_;
  std::vector<SequenceGroup*> catching_up_;  // scratch of schedule_running()
  std::vector<std::size_t> growing_;         // scratch of repeat_spans()
  std::vector<std::int32_t> free_rows_;
  std::int32_t num_running_seqs_ = 0;     // sum of num_sequences() over running_
  std::int32_t num_waiting_holders_ = 0;  // waiting groups with blocks
  std::int32_t num_partial_ = 0;          // running groups with blocks for a part of their tokens
  std::int32_t budget_ = 0;               // tokens that this step may still compute
  StepPlan plan_;
  std::vector<BlockCopy> pending_copies_;  // asked for between plans; done in the next one
  bool plan_is_open_ = false;              // schedule() was called, commit() not yet
  std::int64_t step_ = 0;
  std::int64_t next_arrival_ = 0;
  SequenceId next_sequence_id_ = 0;
  std::unordered_map<std::string, std::int32_t> quotas_;
  PreemptionCosts costs_;
  SchedulerStats counters_;
};

}  // namespace pagedcore
