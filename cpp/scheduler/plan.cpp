#include <algorithm>

#include "cpp/scheduler/core.h"
#include "pagedcore/error.h"

namespace pagedcore {
namespace {

std::int32_t num_uncomputed(const Sequence& sequence) {
  return sequence.num_tokens() - sequence.num_computed();
}

}  // namespace

const StepPlan& SchedulerCore::schedule() {
  PAGEDCORE_REQUIRE(!plan_is_open_, "schedule: the last plan is not committed");
  plan_.swap_out.clear();
  plan_.swap_in.clear();
  plan_.copies.swap(pending_copies_);
  pending_copies_.clear();
  plan_.spans.clear();
  plan_.preempted.clear();
  plan_.capacity_exceeded.clear();
  budget_ = config_.max_num_batched_tokens;
  plan_is_open_ = true;
  ++step_;

  schedule_running();
  if (plan_.preempted.empty()) resume_preempted();
  if (plan_.preempted.empty() && resumed_.empty()) admit_waiting();
  plan_.num_tokens = config_.max_num_batched_tokens - budget_;
  return plan_;
}

void SchedulerCore::commit() {
  PAGEDCORE_REQUIRE(plan_is_open_, "commit: there is no plan to commit");
  plan_is_open_ = false;
  for (const Span& span : plan_.spans) {
    Sequence& sequence = *span.sequence;
    sequence.num_computed_ += span.query_len;
    const bool may_fill_block =
        span.query_len > 1 || sequence.num_computed_ == sequence.writable_end_;
    if (may_fill_block) kv_->on_blocks_filled(sequence);
  }
  kv_->end_step();
}

void SchedulerCore::plan_span(Sequence& sequence, std::int32_t num_tokens) {
  plan_.spans.push_back({.sequence = &sequence,
                         .context_len = sequence.num_computed_,
                         .query_len = num_tokens,
                         .first_changed_block = sequence.first_changed_block_,
                         .reaches_end = num_tokens == num_uncomputed(sequence)});
  sequence.first_changed_block_ = sequence.table_.num_blocks();
  budget_ -= num_tokens;
}

// Sequences that lack one token come first, so that no prompt delays them; what is left of the
// budget goes to prompts and resumed groups, which have their blocks already.
void SchedulerCore::schedule_running() {
  catching_up_.clear();
  for (std::size_t i = 0; i < running_.size(); ++i) {
    SequenceGroup& group = *running_[i];
    bool lacks_more = false;
    bool must_extend = false;
    std::int32_t num_tokens = 0;
    for (const auto& sequence : group.sequences_) {
      const std::int32_t lacking = num_uncomputed(*sequence);
      lacks_more |= lacking > 1 || sequence->waits_for_ != nullptr;
      must_extend |= lacking > 0 && sequence->num_tokens() > sequence->writable_end_;
      num_tokens += lacking;
    }
    if (num_tokens == 0 || (must_extend && !make_room(group))) continue;
    if (lacks_more) {
      catching_up_.push_back(&group);
    } else if (num_tokens <= budget_) {
      for (const auto& sequence : group.sequences_) {
        if (num_uncomputed(*sequence) == 1) plan_span(*sequence, 1);
      }
    }
  }
  for (SequenceGroup* group : catching_up_) schedule_catch_up(*group);
}

// Computes what fits of the uncomputed tokens. The last tokens of all sequences of a group come in
// one step, so that beams stay abreast.
void SchedulerCore::schedule_catch_up(SequenceGroup& group) {
  std::int64_t total = 0;
  bool waits = false;
  for (const auto& sequence : group.sequences_) {
    if (const Sequence* sibling = sequence->waits_for_;
        sibling != nullptr && sibling->waits_for_ == nullptr &&
        sibling->num_computed_ >= sequence->num_computed_) {
      sequence->waits_for_ = nullptr;
    }
    total += num_uncomputed(*sequence);
    waits |= sequence->waits_for_ != nullptr;
  }
  const bool is_whole = (!waits && total <= budget_) || group.num_live() == 1;
  for (const auto& sequence : group.sequences_) {
    if (sequence->waits_for_ != nullptr) continue;
    const std::int32_t wanted = num_uncomputed(*sequence) - (is_whole ? 0 : 1);
    const std::int32_t num_tokens = std::min(wanted, budget_);
    if (num_tokens > 0) plan_span(*sequence, num_tokens);
  }
}

bool SchedulerCore::try_extend(SequenceGroup& group) {
  for (const auto& sequence : group.sequences_) {
    if (sequence->num_tokens() > sequence->writable_end_ &&
        !kv_->try_extend(*sequence, plan_.copies)) {
      return false;
    }
  }
  return true;
}

bool SchedulerCore::make_room(SequenceGroup& group) {
  const std::size_t num_copies = plan_.copies.size();
  while (!try_extend(group)) {
    if (running_.back() != &group) {
      preempt(*running_.back(), true);
    } else if (running_.size() > 1) {
      plan_.copies.resize(num_copies);
      preempt(group, false);
      return false;
    } else {
      plan_.capacity_exceeded.push_back(group.request_id_);
      return false;
    }
  }
  return true;
}

void SchedulerCore::preempt(SequenceGroup& group, bool content_is_good) {
  remove_from_queue(group);
  group.num_lost_tokens_ = 0;
  for (const auto& sequence : group.sequences_) {
    group.num_lost_tokens_ += sequence->num_computed_;
    release_blocks(*sequence, content_is_good);
  }
  group.state_ = GroupState::kPreempted;
  ++group.num_preemptions_;
  resumed_.emplace(key(group), &group);
  if (plan_is_open_) plan_.preempted.push_back(group.request_id_);
}

std::int32_t SchedulerCore::headroom() const {
  return running_.empty() ? 0 : config_.num_blocks / 100;
}

bool SchedulerCore::try_run(SequenceGroup& group, Queue& queue) {
  if (budget_ == 0 || num_running_seqs_ + group.num_sequences_ > config_.max_num_seqs) return false;
  if (!kv_->try_admit(group, headroom(), plan_.copies)) {
    if (running_.empty()) plan_.capacity_exceeded.push_back(group.request_id_);
    return false;
  }
  queue.erase(key(group));
  group.state_ = GroupState::kRunning;
  group.admitted_step_ = step_;
  num_running_seqs_ += group.num_sequences_;
  const auto behind = [](const SequenceGroup* a, const SequenceGroup* b) {
    return key(*a) < key(*b);
  };
  running_.insert(std::ranges::upper_bound(running_, &group, behind), &group);
  for (const auto& sequence : group.sequences_) {
    sequence->tokens_.reserve(group.max_total_tokens_);
    sequence->table_.reserve_ids(group.max_total_tokens_);
    take_row(*sequence);
  }
  schedule_catch_up(group);
  return true;
}

void SchedulerCore::resume_preempted() {
  while (!resumed_.empty() && try_run(*resumed_.begin()->second, resumed_)) {
  }
}

void SchedulerCore::admit_waiting() {
  while (!waiting_.empty() && try_run(*waiting_.begin()->second, waiting_)) {
  }
  for (const auto& [_, group] : waiting_) ++group->num_queue_steps_;
}

}  // namespace pagedcore
