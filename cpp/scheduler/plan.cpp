#include <algorithm>
#include <memory>

#include "cpp/scheduler/core.h"
#include "pagedcore/error.h"

namespace pagedcore {
namespace {

std::int32_t num_uncomputed(const Sequence& sequence) {
  return sequence.num_tokens() - sequence.num_computed();
}

// Whether one token is to be computed, and nothing but its place may be missing.
bool lacks_one_token(const Sequence& sequence) {
  return num_uncomputed(sequence) == 1 && !sequence.is_rebuilding();
}

}  // namespace

const StepPlan& SchedulerCore::schedule() {
  PAGEDCORE_REQUIRE(!plan_is_open_, "schedule: the last plan is not committed");
  plan_.swap_out.clear();
  plan_.swap_in.clear();
  plan_.copies.swap(pending_copies_);
  pending_copies_.clear();
  plan_.preempted.clear();
  plan_.capacity_exceeded.clear();
  budget_ = config_.max_num_batched_tokens;
  plan_is_open_ = true;
  kv_->allocator().set_clock(++step_);

  try {
    make_way_for_priority();
    schedule_running();
    if (plan_.preempted.empty()) admit();
  } catch (...) {
    abandon();
    throw;
  }
  plan_.num_tokens = config_.max_num_batched_tokens - budget_;
  return plan_;
}

void SchedulerCore::commit() {
  PAGEDCORE_REQUIRE(plan_is_open_, "commit: there is no plan to commit");
  plan_is_open_ = false;
  for (const Span& span : plan_.spans) {
    Sequence& sequence = *span.sequence;
    // Where its next token goes: a forward pass sweeps the caches.
    __builtin_prefetch(std::to_address(sequence.tokens_.end()), 1);
    if (span.is_plain_decode) [[likely]] {
      sequence.max_computed_ = ++sequence.num_computed_;
      continue;
    }
    sequence.num_computed_ += span.query_len;
    sequence.max_computed_ = std::max(sequence.max_computed_, sequence.num_computed_);
    sequence.group_->num_recomputed_tokens_ += span.num_recomputed;
    counters_.recomputed_tokens += span.num_recomputed;
    kv_->on_blocks_filled(sequence);
  }
  kv_->end_step();
  counters_.scheduled_tokens += plan_.num_tokens;
  counters_.swapped_out_blocks += std::ssize(plan_.swap_out);
  counters_.swapped_in_blocks += std::ssize(plan_.swap_in);
  counters_.copied_blocks += std::ssize(plan_.copies);
}

void SchedulerCore::retract() {
  PAGEDCORE_REQUIRE(plan_is_open_, "retract: there is no plan to retract");
  plan_is_open_ = false;
  plan_.spans.clear();
  kv_->end_step();
}

bool SchedulerCore::goes_on() const {
  const auto num_spans = static_cast<std::int32_t>(plan_.spans.size());
  return plan_is_open_ && num_spans == num_running_seqs_ && num_partial_ == 0 && resumed_.empty() &&
         waiting_.empty() && quotas_.empty() && plan_.capacity_exceeded.empty() &&
         num_spans <= config_.max_num_batched_tokens &&
         num_spans <= kv_->allocator().num_available();
}

void SchedulerCore::plan_span(Sequence& sequence, std::int32_t num_tokens) {
  plan_.spans.push_back(make_span(sequence, num_tokens));
  budget_ -= num_tokens;
}

Span SchedulerCore::make_span(Sequence& sequence, std::int32_t num_tokens) {
  const std::int32_t num_computed = sequence.num_computed_;
  const std::int32_t first_changed_block = sequence.first_changed_block_;
  const bool reaches_end = num_tokens == sequence.num_tokens() - num_computed;
  const bool is_new = num_computed >= sequence.max_computed_;
  const bool table_changed = sequence.table_changed_;
  // Where a sequence runs anew, its table has changed from the first block on.
  const bool goes_on = first_changed_block > 0;
  if (table_changed) {
    sequence.table_changed_ = false;
    sequence.first_changed_block_ = sequence.table_.num_blocks();
  }
  return {
      .sequence = &sequence,
      .context_len = num_computed,
      .query_len = num_tokens,
      .first_changed_block = first_changed_block,
      .num_recomputed = is_new ? 0 : std::min(num_tokens, sequence.max_computed_ - num_computed),
      .reaches_end = reaches_end,
      .table_changed = table_changed,
      .is_plain_decode = num_tokens == 1 && reaches_end && is_new && goes_on};
}

// Leaves out of the last plan's spans those of sequences that run no more.
void SchedulerCore::leave_out_ended() {
  const std::span<Sequence* const> running = running_.only();
  std::size_t count = 0;
  std::erase_if(plan_.spans, [&](const Span& span) {
    const bool stays = count < running.size() && running[count] == span.sequence;
    count += stays;
    return !stays;
  });
}

// The last plan's first spans stay, each a token further, while they are those of the first running
// sequences and nothing but a token has come to these. Gives their number.
std::size_t SchedulerCore::repeat_spans() {
  growing_.clear();
  if (plan_.spans.size() > running_.size()) leave_out_ended();
  const std::size_t limit =
      std::min({plan_.spans.size(), running_.size(), static_cast<std::size_t>(budget_)});
  Sequence* const* const running = running_.only().data();
  Span* const spans = plan_.spans.data();
  std::size_t count = 0;
  for (; count < limit; ++count) {
    Span& span = spans[count];
    const Sequence* sequence = running[count];
    const std::int32_t context_len = span.context_len + 1;
    if (sequence != span.sequence || !span.is_plain_decode || sequence->table_changed_ ||
        sequence->num_computed_ != context_len || sequence->num_tokens() != context_len + 1) {
      break;
    }
    span.context_len = context_len;
    span.table_changed = false;
    if (context_len >= sequence->writable_end_) growing_.push_back(count);
  }
  plan_.spans.resize(count);
  for (const std::size_t i : growing_) {
    if (!has_place(*spans[i].sequence)) {
      plan_.spans.resize(i);
      break;
    }
    spans[i] = make_span(*spans[i].sequence, 1);
  }
  budget_ -= static_cast<std::int32_t>(plan_.spans.size());
  return plan_.spans.size();
}

// Gives that token a place where that costs nobody anything.
bool SchedulerCore::has_place(Sequence& sequence) {
  const std::int32_t num_tokens = sequence.num_tokens();
  return num_tokens <= sequence.writable_end_ ||
         (quotas_.empty() && kv_->try_extend(sequence, num_tokens, plan_.copies));
}

// Sequences that lack one token come first, so that no prompt delays them; what is left of the
// budget goes to prompts and resumed groups, which have their blocks already.
void SchedulerCore::schedule_running() {
  catching_up_.clear();
  for (std::size_t i = repeat_spans(); i < running_.size();) {
    if (Sequence* sequence = running_.only()[i];
        sequence != nullptr && lacks_one_token(*sequence) && has_place(*sequence)) {
      if (budget_ > 0) plan_span(*sequence, 1);
      ++i;
      continue;
    }
    SequenceGroup& group = *running_[i];
    bool lacks_more = group.is_partial_;
    bool must_extend = false;
    std::int32_t num_tokens = 0;
    for (const auto& sequence : group.sequences_) {
      const std::int32_t lacking = num_uncomputed(*sequence);
      lacks_more |= lacking > 1 || sequence->waits_for_ != nullptr;
      must_extend |= lacking > 0 && sequence->num_tokens() > sequence->writable_end_;
      num_tokens += lacking;
    }
    const bool can_run = num_tokens > 0 && (!must_extend || group.is_partial_ || make_room(group));
    if (i < running_.size() && running_[i] == &group) ++i;
    if (!can_run) continue;
    if (lacks_more) {
      catching_up_.push_back(&group);
    } else if (num_tokens <= budget_) {
      for (const auto& sequence : group.sequences_) {
        if (num_uncomputed(*sequence) == 1) plan_span(*sequence, 1);
      }
    }
  }
  for (SequenceGroup* group : catching_up_) {
    if (group->is_partial_) grow_partial(*group);
    if (group->state_ == GroupState::kRunning) schedule_catch_up(*group);
  }
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
  const bool is_whole = (!waits && !group.is_partial_ && total <= budget_) || group.num_live() == 1;
  for (const auto& sequence : group.sequences_) {
    if (sequence->waits_for_ != nullptr) continue;
    const std::int32_t wanted = num_uncomputed(*sequence) - (is_whole ? 0 : 1);
    const std::int32_t room = sequence->writable_end_ - sequence->num_computed_;
    const std::int32_t num_tokens = std::min({wanted, budget_, room});
    if (num_tokens > 0) plan_span(*sequence, num_tokens);
  }
}

// A partial group gets all that it lacks, or as many blocks as nobody else is going to need soon.
void SchedulerCore::grow_partial(SequenceGroup& group) {
  if (!plan_.preempted.empty()) return;
  const bool nobody_else_grows = num_partial_ == static_cast<std::int32_t>(running_.size());
  const std::int32_t left_to_others = nobody_else_grows ? 0 : headroom(&group);
  const bool needs_quota = lacks_quota(group);
  if (!needs_quota && try_make_whole(group, left_to_others)) return;
  const std::int32_t spare = kv_->allocator().num_available() - left_to_others;
  if (!needs_quota && spare > 0 && group.num_live() == 1 && !group.has_host_blocks()) {
    return extend_partially(group, spare);
  }
  const auto will_give = [&](const SequenceGroup* other) {
    return !other->is_partial_ && (!needs_quota || other->tenant_ == group.tenant_);
  };
  if (std::ranges::none_of(running_, will_give)) break_deadlock(group, needs_quota);
}

bool SchedulerCore::try_make_whole(SequenceGroup& group, std::int32_t headroom) {
  if (group.has_host_blocks() && !kv_->try_swap_in(group, headroom, plan_.swap_in)) return false;
  if (!kv_->try_admit(group, headroom, plan_.copies)) return false;
  set_partial(group, false);
  return true;
}

void SchedulerCore::extend_partially(SequenceGroup& group, std::int32_t num_blocks) {
  Sequence& sequence = *group.sequences_[0];
  kv_->extend_partially(sequence, num_blocks, plan_.copies);
  set_partial(group, sequence.writable_end_ < sequence.num_tokens());
}

void SchedulerCore::set_partial(SequenceGroup& group, bool is_partial) {
  if (group.is_partial_ == is_partial) return;
  num_partial_ += is_partial ? 1 : -1;
  group.is_partial_ = is_partial;
  if (group.state_ == GroupState::kRunning) running_.set_only(group, only_of(group));
}

Sequence* SchedulerCore::only_of(const SequenceGroup& group) {
  return group.num_live() == 1 && !group.is_partial_ ? group.sequences_[0].get() : nullptr;
}

}  // namespace pagedcore
