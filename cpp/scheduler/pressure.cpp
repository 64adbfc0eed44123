// Who gives way when blocks run out, and how.
#include <algorithm>

#include "cpp/scheduler/core.h"
#include "pagedcore/error.h"

namespace pagedcore {

bool SchedulerCore::try_extend(SequenceGroup& group) {
  for (const auto& sequence : group.sequences_) {
    if (sequence->num_tokens() > sequence->writable_end_ &&
        !kv_->try_extend(*sequence, sequence->num_tokens(), plan_.copies)) {
      return false;
    }
  }
  return true;
}

bool SchedulerCore::make_room(SequenceGroup& group) {
  if (!quotas_.empty() && !make_room_in_quota(group)) return false;
  const std::size_t num_copies = plan_.copies.size();
  while (!try_extend(group)) {
    if (reclaim_from_waiting(nullptr)) continue;
    if (SequenceGroup* victim = last_victim(group, false)) {
      take_from(*victim, PreemptionCause::kMemory);
    } else if (running_.back() != &group) {
      return false;  // those behind came in this very step
    } else if (running_.size() > 1 && gives_tail(group)) {
      set_partial(group, true);  // waits for blocks with those that it has
      return false;
    } else if (running_.size() > 1) {
      preempt(group, PreemptionCause::kMemory, plan_.copies.size() == num_copies);
      return false;
    } else {
      exceed_capacity(group);
      return false;
    }
  }
  return true;
}

bool SchedulerCore::make_room_in_quota(SequenceGroup& group) {
  const std::int32_t quota = quota_of(group);
  if (quota == 0) return true;
  while (num_blocks_of_tenant(group.tenant_) + group.num_live() > quota) {
    if (SequenceGroup* victim = last_victim(group, true)) {
      take_from(*victim, PreemptionCause::kQuota);
    } else if (num_unique_blocks(group) + 1 > quota) {
      exceed_capacity(group);
      return false;
    } else if (num_blocks_of_tenant(group.tenant_) > num_unique_blocks(group)) {
      preempt(group, PreemptionCause::kQuota, true);
      return false;
    } else {
      return true;  // alone, and num_live() was a cautious estimate
    }
  }
  return true;
}

// The last group behind `group` that had not been admitted in this step.
SequenceGroup* SchedulerCore::last_victim(const SequenceGroup& group, bool same_tenant) const {
  for (auto it = running_.rbegin(); *it != &group; ++it) {
    if ((*it)->admitted_step_ != step_ && (!same_tenant || (*it)->tenant_ == group.tenant_)) {
      return *it;
    }
  }
  return nullptr;
}

bool SchedulerCore::reclaim_from_waiting(const SequenceGroup* except) {
  for (auto it = waiting_.rbegin(); num_waiting_holders_ > 0 && it != waiting_.rend(); ++it) {
    SequenceGroup& group = *it->second;
    if (&group == except || !group.waits_with_blocks_) continue;
    set_waits_with_blocks(group, false);
    for (const auto& sequence : group.sequences_) kv_->release(*sequence, true);
    return true;
  }
  return false;
}

bool SchedulerCore::gives_tail(const SequenceGroup& group) const {
  return config_.tail_preemption && kv_->can_hold_partially() && group.num_live() == 1 &&
         (group.is_partial_ || !is_swap_cheaper());
}

void SchedulerCore::take_from(SequenceGroup& victim, PreemptionCause cause) {
  if (!gives_tail(victim)) {
    preempt(victim, cause, true);
    return;
  }
  Sequence& sequence = *victim.sequences_[0];
  const std::int32_t before = sequence.num_computed_;
  kv_->shrink(victim, kv_->allocator().num_available() + 1);
  counters_.preempted_tokens += before - sequence.num_computed_;
  if (sequence.table().empty()) {
    preempt(victim, cause, true);
    return;
  }
  if (victim.preempted_step_ < victim.admitted_step_ || !victim.is_partial_) {
    note_preemption(victim, PreemptionKind::kTail, cause);
  }
  set_partial(victim, true);
  report_preempted(victim);
}

void SchedulerCore::preempt(SequenceGroup& group, PreemptionCause cause, bool content_is_good) {
  const bool can_swap = content_is_good && !group.is_partial_ && is_swap_cheaper();
  const bool was_partial = group.is_partial_;
  const bool is_swapped = can_swap && try_swap_out(group);
  remove_from_queue(group);
  if (is_swapped) {
    note_preemption(group, PreemptionKind::kSwap, cause);
    group.state_ = GroupState::kSwapped;
  } else {
    const std::int64_t num_available = kv_->allocator().num_available();
    for (const auto& sequence : group.sequences_) release_blocks(*sequence, content_is_good);
    counters_.preempted_tokens +=
        (kv_->allocator().num_available() - num_available) * kv_->block_size();
    if (!was_partial) note_preemption(group, PreemptionKind::kRecompute, cause);
    group.state_ = GroupState::kPreempted;
  }
  resumed_.insert(std::move(group.queue_node_));
  if (plan_is_open_) report_preempted(group);
}

// The plan's list has room for every group that a step can run, so this never fails.
void SchedulerCore::report_preempted(const SequenceGroup& group) {
  std::vector<RequestId>& preempted = plan_.preempted;
  if (std::ranges::find(preempted, group.request_id_) != preempted.end()) return;
  preempted.push_back(group.request_id_);
}

bool SchedulerCore::is_swap_cheaper() const {
  switch (config_.preemption_mode) {
    case PreemptionMode::kRecompute:
      return false;
    case PreemptionMode::kSwap:
      return true;
    case PreemptionMode::kAuto:
      break;
  }
  if (costs_.prefill_tokens_per_s <= 0 || costs_.swap_blocks_per_s <= 0) return false;
  return 2 / costs_.swap_blocks_per_s < kv_->block_size() / costs_.prefill_tokens_per_s;
}

bool SchedulerCore::try_swap_out(SequenceGroup& group) {
  if (is_rebuilding(group) || !kv_->try_swap_out(group, plan_.swap_out)) return false;
  for (const auto& sequence : group.sequences_) give_row_back(*sequence);
  return true;
}

void SchedulerCore::note_preemption(SequenceGroup& group, PreemptionKind kind,
                                    PreemptionCause cause) {
  ++group.num_preemptions_;
  group.last_preemption_ = kind;
  group.last_preemption_cause_ = cause;
  group.preempted_step_ = step_;
  counters_.tail_preemptions += kind == PreemptionKind::kTail;
  counters_.recompute_preemptions += kind == PreemptionKind::kRecompute;
  counters_.swap_preemptions += kind == PreemptionKind::kSwap;
}

void SchedulerCore::make_way_for_priority() {
  SequenceGroup* head = next_to_admit();
  if (head == nullptr || running_.empty() || running_.back()->priority_ <= head->priority_) return;
  const auto fits = [&](std::int32_t needed) {
    return fits_seqs(*head) && needed <= kv_->allocator().num_available();
  };
  const std::int32_t needed = kv_->num_blocks_to_admit(*head);
  if (fits(needed + headroom(nullptr))) return;
  std::int32_t reachable_blocks = kv_->allocator().num_available();
  std::int32_t reachable_seqs = config_.max_num_seqs - num_running_seqs_;
  for (const SequenceGroup* group : running_) {
    if (group->priority_ <= head->priority_) continue;
    reachable_blocks += num_unique_blocks(*group);
    reachable_seqs += group->num_sequences_;
  }
  if (needed > reachable_blocks || head->num_sequences_ > reachable_seqs) return;
  while (!fits(needed) && !running_.empty() && running_.back()->priority_ > head->priority_) {
    preempt(*running_.back(), PreemptionCause::kPriority, true);
  }
  // A swap-in never shares a step with a swap-out.
  const bool may_move = head->state_ != GroupState::kSwapped || plan_.swap_out.empty();
  if (fits(needed) && may_move) try_run(*head, 0);
}

void SchedulerCore::abandon() {
  PAGEDCORE_REQUIRE(plan_is_open_, "abandon: there is no plan to abandon");
  const auto waits_for_copy = [&](const auto& sequence) {
    return std::ranges::any_of(plan_.copies, [&](const BlockCopy& copy) {
      return std::ranges::find(sequence->table(), copy.dst) != sequence->table().end();
    });
  };
  for (std::size_t i = 0; i < running_.size();) {
    SequenceGroup* group = running_[i];
    const bool is_planned = std::ranges::any_of(
        plan_.spans, [&](const Span& span) { return &span.sequence->group() == group; });
    if (is_planned || group->admitted_step_ == step_ ||
        std::ranges::any_of(group->sequences_, waits_for_copy)) {
      preempt(*group, PreemptionCause::kAbandon, false);
    } else {
      ++i;
    }
  }
  for (const auto& [_, group] : resumed_) {
    if (group->state_ != GroupState::kSwapped || group->preempted_step_ != step_) continue;
    for (const auto& sequence : group->sequences_) kv_->release(*sequence, false);
    group->state_ = GroupState::kPreempted;
  }
  plan_.spans.clear();
  plan_is_open_ = false;
  kv_->end_step();
}

void SchedulerCore::exceed_capacity(const SequenceGroup& group) {
  auto& exceeded = plan_.capacity_exceeded;
  if (std::ranges::find(exceeded, group.request_id_) == exceeded.end()) {
    exceeded.push_back(group.request_id_);
  }
}

std::int32_t SchedulerCore::quota_of(const SequenceGroup& group) const {
  if (quotas_.empty()) return 0;
  const auto quota = quotas_.find(group.tenant_);
  return quota == quotas_.end() ? 0 : quota->second;
}

std::int32_t SchedulerCore::num_blocks_of_tenant(const std::string& tenant) const {
  std::int32_t num_blocks = 0;
  for (const SequenceGroup* group : running_) {
    if (group->tenant_ == tenant) num_blocks += num_unique_blocks(*group);
  }
  return num_blocks;
}

std::int32_t SchedulerCore::num_unique_blocks(const SequenceGroup& group) {
  if (group.num_live() == 1) return group.sequences_[0]->table_.num_blocks();
  std::vector<BlockId> blocks;
  for (const auto& sequence : group.sequences_) {
    blocks.insert(blocks.end(), sequence->table().begin(), sequence->table().end());
  }
  std::ranges::sort(blocks);
  return static_cast<std::int32_t>(std::unique(blocks.begin(), blocks.end()) - blocks.begin());
}

bool SchedulerCore::is_rebuilding(const SequenceGroup& group) {
  return std::ranges::any_of(group.sequences_,
                             [](const auto& sequence) { return sequence->waits_for_ != nullptr; });
}

void SchedulerCore::set_tenant_quota(std::string_view tenant, std::int32_t num_blocks) {
  PAGEDCORE_REQUIRE(num_blocks >= 0, "num_blocks must not be negative, got ", num_blocks);
  if (num_blocks == 0) {
    quotas_.erase(std::string(tenant));
  } else {
    quotas_[std::string(tenant)] = num_blocks;
  }
}

void SchedulerCore::set_costs(const PreemptionCosts& costs) { costs_ = costs; }

}  // namespace pagedcore
