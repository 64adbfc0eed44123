#pragma once

#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pagedcore/kv_manager.h"
#include "pagedcore/scheduler.h"
#include "pagedcore/sequence.h"
#include "pagedcore/step_plan.h"

namespace pagedcore {

// What is behind Scheduler. Invariants:
//   a group is in exactly one of running_, resumed_ and waiting_;
//   a running group's sequences have rows, and blocks for all their tokens but those appended since
//   the last plan; rows taken and rows reserved for forks never exceed max_num_seqs;
//   running_ is in queue order, so the last one is the victim of choice.
class SchedulerCore {
 public:
  SchedulerCore(const SchedulerConfig& config, std::shared_ptr<KvManager> kv);
  ~SchedulerCore();

  Sequence& add(const GroupSpec& spec);
  const StepPlan& schedule();
  void commit();
  void append_token(Sequence& sequence, TokenId token);
  Sequence& fork(Sequence& sequence, std::int32_t num_tokens);
  void finish(Sequence& sequence);
  void abort(RequestId request_id);
  bool has_unfinished() const { return !groups_.empty(); }
  std::vector<std::string> check_invariants() const;

 private:
  // Lower priority values first, then first come first served.
  using QueueKey = std::pair<std::int32_t, std::int64_t>;
  using Queue = std::map<QueueKey, SequenceGroup*>;
  static QueueKey key(const SequenceGroup& g) { return {g.priority_, g.arrival_}; }

  // core.cpp: requests come and go
  void require_feasible(const GroupSpec& spec) const;
  void remove_from_queue(SequenceGroup& group);
  void release_blocks(Sequence& sequence, bool content_is_good);
  void end_group(SequenceGroup& group);
  void take_row(Sequence& sequence);
  void give_row_back(Sequence& sequence);

  // plan.cpp: one step
  void schedule_running();
  void schedule_catch_up(SequenceGroup& group);
  void resume_preempted();
  void admit_waiting();
  bool try_run(SequenceGroup& group, Queue& queue);
  void plan_span(Sequence& sequence, std::int32_t num_tokens);
  // Gives the sequences of a running group room for their uncomputed tokens, taking it from later
  // groups where it must. False: the group cannot run in this step, or was itself preempted.
  bool make_room(SequenceGroup& group);
  bool try_extend(SequenceGroup& group);
  void preempt(SequenceGroup& group, bool content_is_good);
  std::int32_t headroom() const;

  SchedulerConfig config_;
  std::shared_ptr<KvManager> kv_;
  std::unordered_map<RequestId, std::unique_ptr<SequenceGroup>> groups_;
  std::vector<SequenceGroup*> running_;
  Queue resumed_;  // preempted groups: they run before anything that waits
  Queue waiting_;
  std::vector<SequenceGroup*> catching_up_;  // scratch of schedule_running()
  std::vector<std::int32_t> free_rows_;
  std::int32_t num_running_seqs_ = 0;  // sum of num_sequences() over running_
  std::int32_t budget_ = 0;            // tokens that this step may still compute
  StepPlan plan_;
  std::vector<BlockCopy> pending_copies_;  // asked for between plans; done in the next one
  bool plan_is_open_ = false;              // schedule() was called, commit() not yet
  std::int64_t step_ = 0;
  std::int64_t next_arrival_ = 0;
  SequenceId next_sequence_id_ = 0;
};

}  // namespace pagedcore
