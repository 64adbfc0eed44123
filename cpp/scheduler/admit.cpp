#include <algorithm>

#include "cpp/scheduler/core.h"
#include "pagedcore/error.h"
#include "pagedcore/prefix_cache.h"

namespace pagedcore {

void SchedulerCore::require_feasible(const GroupSpec& spec, std::int64_t num_tokens,
                                     std::int32_t num_live) const {
  PAGEDCORE_REQUIRE(num_tokens >= 1, "the prompt must have at least one token");
  PAGEDCORE_REQUIRE(num_tokens <= config_.max_model_len, "the prompt has ", num_tokens,
                    " tokens, max_model_len is ", config_.max_model_len);
  PAGEDCORE_REQUIRE(spec.max_total_tokens >= 0, "max_total_tokens must not be negative, got ",
                    spec.max_total_tokens);
  PAGEDCORE_REQUIRE(spec.num_sequences >= 1, "num_sequences must be at least 1, got ",
                    spec.num_sequences);
  PAGEDCORE_REQUIRE(spec.num_sequences <= config_.max_num_seqs, "the request has ",
                    spec.num_sequences, " sequences, max_num_seqs is ", config_.max_num_seqs);
  PAGEDCORE_REQUIRE(spec.num_sequences <= config_.max_num_batched_tokens, "the request has ",
                    spec.num_sequences, " sequences, max_num_batched_tokens is ",
                    config_.max_num_batched_tokens);
  PAGEDCORE_REQUIRE(!groups_.contains(spec.request_id), "request_id ", spec.request_id,
                    " is in use");
  const std::int32_t total =
      spec.max_total_tokens > 0 ? spec.max_total_tokens : config_.max_model_len;
  const std::int32_t needed =
      kv_->min_blocks(static_cast<std::int32_t>(num_tokens), num_live, total);
  const std::int32_t num_blocks = kv_->allocator().num_blocks();
  PAGEDCORE_REQUIRE(needed <= num_blocks, "the request can never fit: ", num_tokens,
                    " prompt tokens and the first output of ", num_live, " sequence(s) take ",
                    needed, " blocks of ", kv_->block_size(), " tokens, the KV cache has ",
                    num_blocks);
  const auto quota = quotas_.find(std::string(spec.tenant));
  PAGEDCORE_REQUIRE(quota == quotas_.end() || needed <= quota->second,
                    "the request can never fit: it takes ", needed, " blocks of ",
                    kv_->block_size(), " tokens, the quota of tenant '", spec.tenant, "' is ",
                    quota->second);
  if (config_.max_waiting > 0 &&
      static_cast<std::int32_t>(waiting_.size()) >= config_.max_waiting) {
    throw QueueFull(detail::concat("the waiting queue is full: ", waiting_.size(),
                                   " requests wait, max_waiting is ", config_.max_waiting));
  }
}

SequenceGroup* SchedulerCore::next_to_admit() {
  // Nobody passes a group of the same tenant that waits for its quota.
  std::vector<const SequenceGroup*> waits_for_quota;
  const auto is_within_quota = [&](const SequenceGroup& group) {
    const std::int32_t quota = quota_of(group);
    if (quota == 0) return true;
    const auto comes_before = [&](const SequenceGroup* other) {
      return other->tenant_ == group.tenant_ && other->priority_ <= group.priority_;
    };
    if (std::ranges::any_of(waits_for_quota, comes_before)) return false;
    const std::int32_t taken = num_blocks_of_tenant(group.tenant_);
    if (taken + kv_->num_blocks_of_whole(group) <= quota) return true;
    if (taken == 0) exceed_capacity(group);
    waits_for_quota.push_back(&group);
    return false;
  };
  for (const SequenceGroup* group : running_) {
    if (quotas_.empty() || num_partial_ == 0) break;
    if (group->is_partial_ && lacks_quota(*group)) waits_for_quota.push_back(group);
  }
  const auto first = [&](const GroupQueue& queue) -> SequenceGroup* {
    for (const auto& [_, group] : queue) {
      if (quotas_.empty() || is_within_quota(*group)) return group;
    }
    return nullptr;
  };
  SequenceGroup* resumed = first(resumed_);
  SequenceGroup* waiting = first(waiting_);
  if (resumed == nullptr || waiting == nullptr) return resumed == nullptr ? waiting : resumed;
  return waiting->priority_ < resumed->priority_ ? waiting : resumed;
}

bool SchedulerCore::fits_seqs(const SequenceGroup& group) const {
  return num_running_seqs_ + group.num_sequences_ <= config_.max_num_seqs;
}

// Whether this step computes half or more of what a new group lacks, so that the prefix cache has
// it in the next one.
bool SchedulerCore::gains_by_waiting(const SequenceGroup& group) const {
  const PrefixCache* cache = kv_->prefix_cache();
  if (cache == nullptr || !group.reads_prefix_cache() || group.state_ != GroupState::kWaiting ||
      group.waits_with_blocks_ || group.num_live() > 1) {
    return false;
  }
  const auto tokens = group.sequences_[0]->tokens();
  const std::int32_t num_cached = cache->match(tokens, group.salt()).num_tokens;
  const auto num_lacking = static_cast<std::int32_t>(tokens.size()) - num_cached;
  return std::ranges::any_of(plan_.spans, [&](const Span& span) {
    const Sequence& other = *span.sequence;
    if (span.is_plain_decode || other.num_registered_blocks_ < 0) return false;
    const std::int32_t end = span.context_len + span.query_len;
    if (2 * (end - num_cached) < num_lacking || other.group_->salt() != group.salt()) return false;
    const auto begin = other.tokens().first(end);
    const auto num_common = std::ranges::mismatch(begin, tokens).in1 - begin.begin();
    return 2 * (num_common / kv_->block_size() * kv_->block_size() - num_cached) >= num_lacking;
  });
}

void SchedulerCore::admit() {
  while (budget_ > 0) {
    SequenceGroup* group = next_to_admit();
    if (group == nullptr || !fits_seqs(*group) || gains_by_waiting(*group)) return;
    if (lacks_memory_for_partial() && running_.back()->priority_ <= group->priority_) return;
    if (try_run(*group, headroom(nullptr))) {
      schedule_catch_up(*group);
      continue;
    }
    if (running_.empty()) {
      // Nothing else runs, so nothing that could end will make room.
      if (!reclaim_from_waiting(group)) exceed_capacity(*group);
    } else if (try_run_partially(*group)) {
      schedule_catch_up(*group);
    }
    return;
  }
}

// Takes the memory that a group needs of the host while it runs.
void SchedulerCore::reserve_to_run(SequenceGroup& group) {
  for (const auto& sequence : group.sequences_) {
    sequence->tokens_.reserve(group.max_total_tokens_);
    sequence->table_.reserve_ids(group.max_total_tokens_);
  }
}

bool SchedulerCore::try_run(SequenceGroup& group, std::int32_t headroom) {
  reserve_to_run(group);
  if (group.state_ != GroupState::kSwapped) {
    const std::int32_t num_brought = group.sequences_[0]->num_computed_;
    if (!kv_->try_admit(group, headroom, plan_.copies)) return false;
    start_running(group);
    note_admission(group, num_brought);
    return true;
  }
  const std::int32_t limit = kv_->allocator().num_available() - headroom;
  if (kv_->num_blocks_to_admit(group) > limit) return false;
  PAGEDCORE_CHECK(kv_->try_swap_in(group, headroom, plan_.swap_in), "request ", group.request_id_);
  start_running(group);
  PAGEDCORE_CHECK(kv_->try_admit(group, headroom, plan_.copies), "request ", group.request_id_);
  return true;
}

bool SchedulerCore::try_run_partially(SequenceGroup& group) {
  const std::int32_t spare = kv_->allocator().num_available() - headroom(nullptr);
  if (!config_.partial_admission || !kv_->can_hold_partially() || spare <= 0 ||
      group.num_live() > 1 || group.state_ == GroupState::kSwapped) {
    return false;
  }
  reserve_to_run(group);
  const std::int32_t num_brought = group.sequences_[0]->num_computed_;
  start_running(group);
  extend_partially(group, spare);
  note_admission(group, num_brought);
  return true;
}

// Notes the first time that a group runs. `num_brought` tokens were stored before the prefix cache
// was asked for the others: a fork shares them with its parent, and a load writes them.
void SchedulerCore::note_admission(SequenceGroup& group, std::int32_t num_brought) {
  if (group.num_queue_steps_ >= 0) return;
  group.num_queue_steps_ = step_ - group.enqueued_step_ - 1;
  counters_.prompt_tokens_queried += group.sequences_[0]->num_tokens() - num_brought;
  counters_.prompt_tokens_hit += group.sequences_[0]->num_computed_ - num_brought;
}

void SchedulerCore::start_running(SequenceGroup& group) {
  remove_from_queue(group);
  group.state_ = GroupState::kRunning;
  group.admitted_step_ = step_;
  num_running_seqs_ += group.num_sequences_;
  const auto comes_before = [](const SequenceGroup* a, const SequenceGroup* b) {
    return key(*a) < key(*b);
  };
  running_.insert(group, only_of(group), comes_before);
  for (const auto& sequence : group.sequences_) take_row(*sequence);
}

}  // namespace pagedcore
