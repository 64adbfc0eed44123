// Who gives way when blocks run out, and how.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpp/scheduler/core.h"
#include "pagedcore/error.h"

namespace pagedcore {
namespace {

// Growth headroom is at most this part of the pool, or small pools would run one request at a time.
constexpr std::int32_t kMaxHeadroomShare = 16;

std::int32_t num_unique_blocks(const SequenceGroup& group) {
  const auto sequences = group.sequences();
  if (sequences.size() == 1) return static_cast<std::int32_t>(sequences[0]->table().size());
  std::vector<BlockId> blocks;
  for (const auto& sequence : sequences) {
    blocks.insert(blocks.end(), sequence->table().begin(), sequence->table().end());
  }
  std::ranges::sort(blocks);
  return static_cast<std::int32_t>(std::unique(blocks.begin(), blocks.end()) - blocks.begin());
}

}  // namespace

std::int32_t SchedulerCore::headroom(const SequenceGroup* except) const {
  const std::int32_t num_seqs = num_running_seqs_ - (except ? except->num_sequences_ : 0);
  if (num_seqs == 0) return 0;
  const std::int32_t num_blocks = kv_->allocator().num_blocks();
  if (config_.headroom == HeadroomPolicy::kWatermark) {
    return static_cast<std::int32_t>(std::ceil(config_.watermark * num_blocks));
  }
  const std::int64_t growth = std::int64_t{num_seqs} * config_.headroom_tokens;
  const std::int32_t limit = std::max(num_blocks / kMaxHeadroomShare, 1);
  return static_cast<std::int32_t>(
      std::min<std::int64_t>((growth + kv_->block_size() - 1) / kv_->block_size(), limit));
}

bool SchedulerCore::lacks_memory_for_partial() const {
  const auto lacks_memory = [&](const SequenceGroup* group) {
    return group->is_partial_ && !lacks_quota(*group);
  };
  return num_partial_ > 0 && std::ranges::any_of(running_, lacks_memory);
}

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
    const std::int32_t needed = num_unique_blocks(group) + kv_->num_blocks_to_extend(group);
    if (needed > kv_->allocator().num_blocks()) {
      exceed_capacity(group);  // whatever the others gave
      return false;
    }
    if (reclaim_from_waiting(nullptr)) continue;
    if (SequenceGroup* victim = last_victim(group, false)) {
      take_one_from(*victim, PreemptionCause::kMemory);
    } else if (running_.back() != &group) {
      return false;  // those behind came in this very step
    } else if (running_.size() > 1 && gives_tail(group)) {
      set_partial(group, true);  // waits for blocks, and keeps those that it has
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
  const std::int32_t needed = kv_->num_blocks_to_extend(group);
  while (num_blocks_of_tenant(group.tenant_) + needed > quota) {
    if (SequenceGroup* victim = last_victim(group, true)) {
      take_one_from(*victim, PreemptionCause::kQuota);
    } else if (num_unique_blocks(group) + needed > quota) {
      exceed_capacity(group);
      return false;
    } else {
      preempt(group, PreemptionCause::kQuota, true);
      return false;
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

// REQUIRES: `group` is partial, and no whole group runs that could end and leave it blocks (of its
// tenant's quota, where that is what it lacks).
void SchedulerCore::break_deadlock(SequenceGroup& group, bool same_tenant) {
  if (!plan_.swap_in.empty()) return;  // blocks may have to move the other way
  const auto concerns = [&](const SequenceGroup* other) {
    return !same_tenant || other->tenant_ == group.tenant_;
  };
  if (*std::ranges::find_if(running_, concerns) != &group) return;  // the first one sees to it
  if (SequenceGroup* victim = last_victim(group, same_tenant)) {
    take_one_from(*victim, same_tenant ? PreemptionCause::kQuota : PreemptionCause::kMemory);
  } else if (std::ranges::count_if(running_, concerns) == 1 && !reclaim_from_waiting(nullptr)) {
    // It may need less where it starts anew; admission finds out, and ends it if not.
    preempt(group, PreemptionCause::kMemory, false);
  }
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
  return config_.tail_preemption && kv_->can_hold_partially() && !is_rebuilding(group);
}

void SchedulerCore::take_one_from(SequenceGroup& victim, PreemptionCause cause) {
  take_from(victim, kv_->allocator().num_available() + 1, cause);
}

void SchedulerCore::take_from(SequenceGroup& victim, std::int32_t num_available,
                              PreemptionCause cause) {
  if (!gives_tail(victim)) return preempt(victim, cause, true);
  const KvManager::Tail tail = kv_->tail_of(victim, num_available);
  const bool keeps_blocks = std::ranges::any_of(tail.num_kept, [](auto num) { return num > 0; });
  if (!keeps_blocks) return preempt(victim, cause, true);
  PreemptionKind kind = PreemptionKind::kSwap;
  if (!try_swap_out(victim, tail)) {
    kind = PreemptionKind::kTail;
    counters_.preempted_tokens += tail.num_tokens;
    kv_->drop(victim, tail);
  }
  const bool is_noted = victim.is_partial_ && victim.preempted_step_ >= victim.admitted_step_ &&
                        victim.last_preemption_ == kind;
  if (!is_noted && tail.num_tokens > 0) note_preemption(victim, kind, cause);
  set_partial(victim, true);
  report_preempted(victim);
}

void SchedulerCore::preempt(SequenceGroup& group, PreemptionCause cause, bool content_is_good) {
  constexpr std::int32_t kAll = std::numeric_limits<std::int32_t>::max();
  const bool was_partial = group.is_partial_;
  bool is_swapped = false;
  if (content_is_good) {
    const KvManager::Tail everything = kv_->tail_of(group, kAll);
    is_swapped = try_swap_out(group, everything);
    if (!is_swapped) counters_.preempted_tokens += everything.num_tokens;
  }
  remove_from_queue(group);
  if (is_swapped) {
    for (const auto& sequence : group.sequences_) give_row_back(*sequence);
    note_preemption(group, PreemptionKind::kSwap, cause);
    group.state_ = GroupState::kSwapped;
  } else {
    for (const auto& sequence : group.sequences_) release_blocks(*sequence, content_is_good);
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

bool SchedulerCore::try_swap_out(SequenceGroup& group, const KvManager::Tail& tail) {
  // What lies on the host already stays good only where what is before it does.
  const bool wants_swap =
      group.has_host_blocks() || (tail.num_blocks > 0 && is_swap_cheaper(group, tail));
  return wants_swap && !is_rebuilding(group) && plan_.swap_in.empty() &&
         kv_->try_swap_out(group, tail, plan_.swap_out);
}

bool SchedulerCore::is_swap_cheaper(const SequenceGroup& group, const KvManager::Tail& tail) const {
  switch (config_.preemption_mode) {
    case PreemptionMode::kRecompute:
      return false;
    case PreemptionMode::kSwap:
      return true;
    case PreemptionMode::kAuto:
      break;
  }
  std::int64_t num_lost_before = 0;
  for (const auto& sequence : group.sequences_) {
    num_lost_before += std::max(0, sequence->max_computed_ - sequence->num_computed_);
  }
  const std::int32_t num_decoding = num_running_seqs_ - group.num_live();
  return costs_.swap_seconds(tail.num_blocks) <
         costs_.recompute_seconds(num_lost_before + tail.num_lost_tokens, num_decoding) -
             costs_.recompute_seconds(num_lost_before, num_decoding);
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
    if (fits_seqs(*head)) {
      take_from(*running_.back(), needed, PreemptionCause::kPriority);
    } else {
      preempt(*running_.back(), PreemptionCause::kPriority, true);
    }
  }
  // A swap-in never shares a step with a swap-out.
  const bool may_move = head->state_ != GroupState::kSwapped || plan_.swap_out.empty();
  if (fits(needed) && may_move) try_run(*head, 0);
}

void SchedulerCore::abandon() {
  PAGEDCORE_REQUIRE(plan_is_open_, "abandon: there is no plan to abandon");
  const auto has_target = [](const std::vector<BlockCopy>& moves, std::span<const BlockId> blocks) {
    return std::ranges::any_of(moves, [&](const BlockCopy& move) {
      return std::ranges::find(blocks, move.dst) != blocks.end();
    });
  };
  const auto waits_for_moves = [&](const SequenceGroup& group) {
    return std::ranges::any_of(group.sequences_, [&](const auto& sequence) {
      return has_target(plan_.copies, sequence->table()) ||
             has_target(plan_.swap_in, sequence->table()) ||
             has_target(plan_.swap_out, sequence->host_table_.blocks());
    });
  };
  for (std::size_t i = 0; i < running_.size();) {
    SequenceGroup* group = running_[i];
    // Where planning failed, spans of the last plan may be left, of sequences that are gone.
    const bool is_planned = std::ranges::any_of(group->sequences_, [&](const auto& sequence) {
      return std::ranges::find(plan_.spans, sequence.get(), &Span::sequence) != plan_.spans.end();
    });
    if (is_planned || group->admitted_step_ == step_ || waits_for_moves(*group)) {
      preempt(*group, PreemptionCause::kAbandon, false);
    } else {
      ++i;
    }
  }
  for (const auto& [_, group] : resumed_) {
    if (group->state_ != GroupState::kSwapped || !waits_for_moves(*group)) continue;
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

bool SchedulerCore::lacks_quota(const SequenceGroup& group) const {
  const std::int32_t quota = quota_of(group);
  if (quota == 0) return false;
  const std::int32_t taken_by_others =
      num_blocks_of_tenant(group.tenant_) - num_unique_blocks(group);
  return taken_by_others + kv_->num_blocks_of_whole(group) > quota;
}

std::int32_t SchedulerCore::num_blocks_of_tenant(const std::string& tenant) const {
  std::int32_t num_blocks = 0;
  for (const SequenceGroup* group : running_) {
    if (group->tenant_ == tenant) num_blocks += num_unique_blocks(*group);
  }
  return num_blocks;
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

double PreemptionCosts::swap_seconds(std::int32_t num_blocks) const {
  if (swap_blocks_per_s <= 0) return std::numeric_limits<double>::infinity();
  return 2 * num_blocks / swap_blocks_per_s;
}

double PreemptionCosts::recompute_seconds(std::int64_t num_tokens,
                                          std::int32_t num_decoding) const {
  if (prefill_tokens_per_s <= 0) return 0;
  const double num_free = std::max(0.0, min_step_s * prefill_tokens_per_s - num_decoding);
  return std::max(0.0, static_cast<double>(num_tokens) - num_free) / prefill_tokens_per_s;
}

void SchedulerCore::set_costs(const PreemptionCosts& costs) { costs_ = costs; }

}  // namespace pagedcore
