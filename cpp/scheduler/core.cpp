#include "cpp/scheduler/core.h"

#include <algorithm>

#include "cpp/base/reserve.h"
#include "pagedcore/error.h"

namespace pagedcore {

SchedulerCore::SchedulerCore(const SchedulerConfig& config, std::shared_ptr<KvManager> kv)
    : config_(config), kv_(std::move(kv)) {
  PAGEDCORE_REQUIRE(config.max_num_seqs >= 1, "max_num_seqs must be at least 1, got ",
                    config.max_num_seqs);
  PAGEDCORE_REQUIRE(config.max_num_batched_tokens >= 1,
                    "max_num_batched_tokens must be at least 1, got ",
                    config.max_num_batched_tokens);
  PAGEDCORE_REQUIRE(config.max_model_len >= 1, "max_model_len must be at least 1, got ",
                    config.max_model_len);
  PAGEDCORE_REQUIRE(config.watermark >= 0 && config.watermark < 1,
                    "watermark must be in [0, 1), got ", config.watermark);
  PAGEDCORE_REQUIRE(config.headroom_tokens >= 0, "headroom_tokens must not be negative, got ",
                    config.headroom_tokens);
  PAGEDCORE_REQUIRE(config.max_waiting >= 0, "max_waiting must not be negative, got ",
                    config.max_waiting);
  running_.reserve(config.max_num_seqs);
  plan_.spans.reserve(config.max_num_seqs);
  plan_.preempted.reserve(2 * std::int64_t{config.max_num_seqs});
  catching_up_.reserve(config.max_num_seqs);
  growing_.reserve(config.max_num_seqs);
  for (std::int32_t row = config.max_num_seqs - 1; row >= 0; --row) free_rows_.push_back(row);
}

SchedulerCore::~SchedulerCore() {
  kv_->end_step();
  for (const auto& [id, group] : groups_) kv_->release_salt(group->salt_);
}

std::unique_ptr<Sequence> SchedulerCore::make_sequence(SequenceGroup& group,
                                                       std::vector<TokenId> tokens,
                                                       std::int32_t num_prompt_tokens) {
  auto sequence =
      std::make_unique<Sequence>(next_sequence_id_++, group, std::move(tokens), num_prompt_tokens,
                                 kv_->make_table(), kv_->make_host_table());
  sequences_.emplace(sequence->id_, sequence.get());
  return sequence;
}

std::unique_ptr<SequenceGroup> SchedulerCore::make_group(const GroupSpec& spec) {
  auto group = std::make_unique<SequenceGroup>();
  group->request_id_ = spec.request_id;
  group->arrival_ = next_arrival_++;
  group->priority_ = spec.priority;
  group->num_sequences_ = spec.num_sequences;
  group->max_total_tokens_ = spec.max_total_tokens > 0
                                 ? std::min(spec.max_total_tokens, config_.max_model_len)
                                 : config_.max_model_len;
  group->reads_prefix_cache_ = spec.read_prefix_cache;
  group->tenant_ = spec.tenant;
  group->enqueued_step_ = step_;
  group->sequences_.reserve(spec.num_sequences);
  group->held_.reserve(spec.num_sequences);
  return group;
}

template <typename Fill>
SequenceGroup& SchedulerCore::enqueue(const GroupSpec& spec, const Fill& fill) {
  const std::int32_t salt = kv_->acquire_salt(spec.cache_salt);
  std::unique_ptr<SequenceGroup> group;
  try {
    group = make_group(spec);
    group->salt_ = salt;
    waiting_.emplace(key(*group), group.get());
    std::unique_ptr<SequenceGroup>& place = groups_[spec.request_id];
    fill(*group);
    return *(place = std::move(group));
  } catch (...) {
    groups_.erase(spec.request_id);
    if (group != nullptr) {
      waiting_.erase(key(*group));
      for (const auto& sequence : group->sequences_) sequences_.erase(sequence->id_);
    }
    kv_->release_salt(salt);
    throw;
  }
}

Sequence& SchedulerCore::add(const GroupSpec& spec) {
  const auto num_tokens = static_cast<std::int32_t>(spec.prompt.size());
  require_feasible(spec, num_tokens, spec.num_sequences);
  std::vector<TokenId> tokens(spec.prompt.begin(), spec.prompt.end());
  SequenceGroup& added = enqueue(spec, [&](SequenceGroup& group) {
    group.sequences_.push_back(make_sequence(group, std::move(tokens), num_tokens));
  });
  return *added.sequences_[0];
}

Sequence& SchedulerCore::fork_request(Sequence& parent, std::int32_t num_tokens,
                                      const GroupSpec& spec) {
  PAGEDCORE_REQUIRE(!plan_is_open_, "fork_request: the last plan is not committed");
  PAGEDCORE_REQUIRE(num_tokens >= 1 && num_tokens <= parent.num_tokens(),
                    "fork_request: num_tokens must be in [1, ", parent.num_tokens(), "], got ",
                    num_tokens);
  std::vector<TokenId> tokens(parent.tokens_.begin(), parent.tokens_.begin() + num_tokens);
  tokens.insert(tokens.end(), spec.prompt.begin(), spec.prompt.end());
  const auto total = static_cast<std::int32_t>(tokens.size());
  require_feasible(spec, total, spec.num_sequences);
  SequenceGroup& added = enqueue(spec, [&](SequenceGroup& group) {
    group.sequences_.push_back(make_sequence(group, std::move(tokens), total));
    // KV is shared only within one salt, and not where the caller wants every position computed.
    if (group.salt_ != parent.group_->salt_ || !spec.read_prefix_cache) return;
    Sequence& child = *group.sequences_[0];
    share_computed(parent, child, std::min(num_tokens, total - 1));
  });
  Sequence& child = *added.sequences_[0];
  set_waits_with_blocks(added, child.num_computed_ > 0);
  return child;
}

// Lets a sequence without blocks share those that another has of its first tokens.
void SchedulerCore::share_computed(Sequence& parent, Sequence& child, std::int32_t num_tokens) {
  if (parent.waits_for_ != nullptr) return;
  const auto num_slots = static_cast<std::int32_t>(parent.table_.num_slots());
  const std::int32_t num_shared = std::min({num_tokens, parent.num_computed_, num_slots});
  child.num_computed_ = child.max_computed_ = num_shared;
  if (num_shared > 0) kv_->fork(parent, child, pending_copies_);
}

const SequenceGroup& SchedulerCore::restore(const GroupSpec& spec,
                                            std::span<const SequenceSpec> specs) {
  PAGEDCORE_REQUIRE(!plan_is_open_, "restore: the last plan is not committed");
  const auto count = static_cast<std::int32_t>(specs.size());
  PAGEDCORE_REQUIRE(count >= 1 && count <= spec.num_sequences,
                    "restore: the number of sequences must be in [1, ", spec.num_sequences,
                    "], got ", count);
  std::int64_t longest = 0;
  for (std::int32_t i = 0; i < count; ++i) {
    const SequenceSpec& s = specs[i];
    const auto total = static_cast<std::int32_t>(s.tokens.size());
    PAGEDCORE_REQUIRE(s.num_computed >= 0 && s.num_computed < total,
                      "restore: num_computed must be in [0, ", total, "), got ", s.num_computed);
    PAGEDCORE_REQUIRE(spec.prompt.size() <= s.tokens.size() &&
                          std::equal(spec.prompt.begin(), spec.prompt.end(), s.tokens.begin()),
                      "restore: tokens must begin with the prompt");
    PAGEDCORE_REQUIRE(s.sibling < i, "restore: sibling must come before sequence ", i, ", got ",
                      s.sibling);
    const std::int32_t limit =
        s.sibling < 0 ? 0 : std::min(s.num_computed, specs[s.sibling].num_computed);
    PAGEDCORE_REQUIRE(s.num_shared >= 0 && s.num_shared <= limit,
                      "restore: num_shared must be in [0, ", limit, "], got ", s.num_shared);
    longest = std::max<std::int64_t>(longest, total);
  }
  require_feasible(spec, longest, count);
  SequenceGroup& restored = enqueue(spec, [&](SequenceGroup& group) {
    for (const SequenceSpec& s : specs) {
      group.sequences_.push_back(make_sequence(group, {s.tokens.begin(), s.tokens.end()},
                                               static_cast<std::int32_t>(spec.prompt.size())));
    }
    for (std::size_t i = 0; i < specs.size(); ++i) {
      group.sequences_[i]->table_.reserve_ids(specs[i].num_computed);
    }
    if (try_restore(group, specs)) return;
    for (const auto& sequence : group.sequences_) kv_->release(*sequence, false);
  });
  set_waits_with_blocks(restored, std::ranges::any_of(restored.sequences_, [](const auto& s) {
                          return s->num_computed_ > 0;
                        }));
  return restored;
}

bool SchedulerCore::try_restore(SequenceGroup& group, std::span<const SequenceSpec> specs) {
  const std::int32_t block_size = kv_->block_size();
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const SequenceSpec& s = specs[i];
    Sequence& sequence = *group.sequences_[i];
    // A block that both are to write behind what they share is not shared.
    const bool is_all = s.num_shared == s.num_computed;
    if (s.num_shared > 0) {
      share_computed(*group.sequences_[s.sibling], sequence,
                     is_all ? s.num_shared : s.num_shared / block_size * block_size);
    }
    if (!kv_->try_extend(sequence, s.num_computed, pending_copies_)) return false;
    sequence.num_computed_ = sequence.max_computed_ = s.num_computed;
    sequence.writable_end_ = 0;
    sequence.num_registered_blocks_ = -1;  // what a file held is not served to other requests
  }
  return true;
}

void SchedulerCore::take_row(Sequence& sequence) {
  sequence.row_ = free_rows_.back();
  free_rows_.pop_back();
  sequence.first_changed_block_ = 0;
  sequence.table_changed_ = true;
}

void SchedulerCore::give_row_back(Sequence& sequence) {
  if (sequence.row_ < 0) return;
  free_rows_.push_back(sequence.row_);
  sequence.row_ = -1;
}

Sequence& SchedulerCore::fork(Sequence& sequence, std::int32_t num_tokens) {
  SequenceGroup& group = *sequence.group_;
  PAGEDCORE_REQUIRE(!plan_is_open_, "fork: the last plan is not committed");
  PAGEDCORE_REQUIRE(group.state_ == GroupState::kRunning && sequence.row_ >= 0, "fork: sequence ",
                    sequence.id_, " is not running");
  PAGEDCORE_REQUIRE(group.num_live() < group.num_sequences_, "fork: request ", group.request_id_,
                    " was added for ", group.num_sequences_, " sequences and has as many");
  PAGEDCORE_REQUIRE(num_tokens >= 1 && num_tokens <= sequence.num_tokens(),
                    "fork: num_tokens must be in [1, ", sequence.num_tokens(), "], got ",
                    num_tokens);
  PAGEDCORE_REQUIRE(!is_rebuilding(group) && !group.is_partial_, "fork: request ",
                    group.request_id_, " is being computed again after a preemption");
  if (group.spare_.empty()) reserve_forks(sequence, 1);
  Sequence& child = *group.spare_.back();
  child.num_computed_ = child.max_computed_ = std::min(num_tokens, sequence.num_computed_);
  kv_->fork(sequence, child, pending_copies_);
  child.tokens_.assign(sequence.tokens_.begin(), sequence.tokens_.begin() + num_tokens);
  child.num_prompt_tokens_ = std::min(sequence.num_prompt_tokens_, num_tokens);
  take_row(child);
  group.sequences_.push_back(std::move(group.spare_.back()));
  group.spare_.pop_back();
  if (group.num_live() == 2) running_.set_only(group, nullptr);
  return child;
}

void SchedulerCore::reserve_forks(Sequence& sequence, std::int32_t count) {
  SequenceGroup& group = *sequence.group_;
  group.spare_.reserve(count);
  while (static_cast<std::int32_t>(group.spare_.size()) < count) {
    group.spare_.push_back(make_sequence(group, {}, 0));
  }
  for (const auto& spare : group.spare_) {
    spare->tokens_.reserve(group.max_total_tokens_);
    spare->table_.reserve_ids(group.max_total_tokens_);
  }
}

void SchedulerCore::drop_spare(SequenceGroup& group) {
  for (const auto& spare : group.spare_) sequences_.erase(spare->id_);
  group.spare_.clear();
}

void SchedulerCore::release_blocks(Sequence& sequence, bool content_is_good) {
  kv_->release(sequence, content_is_good);
  give_row_back(sequence);
}

GroupQueue& SchedulerCore::queue_of(const SequenceGroup& group) {
  return group.state_ == GroupState::kWaiting ? waiting_ : resumed_;
}

void SchedulerCore::remove_from_queue(SequenceGroup& group) {
  if (group.state_ == GroupState::kFinished) return;
  if (group.state_ == GroupState::kRunning) {
    set_partial(group, false);
    running_.erase(group);
    num_running_seqs_ -= group.num_sequences_;
  } else {
    group.queue_node_ = queue_of(group).extract(key(group));
    set_waits_with_blocks(group, false);
  }
}

void SchedulerCore::set_waits_with_blocks(SequenceGroup& group, bool waits_with_blocks) {
  num_waiting_holders_ += waits_with_blocks - group.waits_with_blocks_;
  group.waits_with_blocks_ = waits_with_blocks;
}

void SchedulerCore::end_group(SequenceGroup& group) {
  remove_from_queue(group);
  group.state_ = GroupState::kFinished;
  if (plan_is_open_) {
    std::erase_if(plan_.spans, [&](const Span& s) { return &s.sequence->group() == &group; });
  }
  for (const auto& sequence : group.sequences_) {
    release_blocks(*sequence, !plan_is_open_);
    sequences_.erase(sequence->id_);
  }
  group.sequences_.clear();
  drop_spare(group);
  erase_if_empty(group);
}

void SchedulerCore::erase_if_empty(SequenceGroup& group) {
  if (!group.sequences_.empty() || !group.held_.empty()) return;
  kv_->release_salt(group.salt_);
  groups_.erase(group.request_id_);
}

std::unique_ptr<Sequence> SchedulerCore::detach(Sequence& sequence) {
  SequenceGroup& group = *sequence.group_;
  const auto found =
      std::ranges::find(group.sequences_, &sequence, &std::unique_ptr<Sequence>::get);
  PAGEDCORE_REQUIRE(found != group.sequences_.end(), "sequence ", sequence.id_, " has ended");
  const bool others_wait = std::ranges::any_of(
      group.sequences_, [&](const auto& sibling) { return sibling->waits_for_ == &sequence; });
  std::unique_ptr<Sequence> detached = std::move(*found);
  group.sequences_.erase(found);
  if (group.sequences_.empty()) {
    remove_from_queue(group);
    group.state_ = GroupState::kFinished;
    drop_spare(group);
  } else if (others_wait) {
    preempt(group, PreemptionCause::kSibling, false);
  } else if (group.state_ == GroupState::kRunning && group.num_live() == 1) {
    running_.set_only(group, only_of(group));
  }
  return detached;
}

void SchedulerCore::drop_span(const Sequence& sequence) {
  if (!plan_is_open_) return;
  std::erase_if(plan_.spans, [&](const Span& span) { return span.sequence == &sequence; });
}

std::vector<TokenId> SchedulerCore::finish(Sequence& sequence) {
  SequenceGroup& group = *sequence.group_;
  drop_span(sequence);
  const std::unique_ptr<Sequence> detached = detach(sequence);
  release_blocks(*detached, true);
  sequences_.erase(detached->id_);
  erase_if_empty(group);
  return std::move(detached->tokens_);
}

void SchedulerCore::hold(Sequence& sequence) {
  PAGEDCORE_REQUIRE(sequence.row_ >= 0 && sequence.waits_for_ == nullptr, "hold: sequence ",
                    sequence.id_, " is not running");
  SequenceGroup& group = *sequence.group_;
  reserve_more(group.held_, 1);
  drop_span(sequence);
  group.held_.push_back(detach(sequence));
  give_row_back(sequence);
  sequence.drop_host_tail();
  kv_->on_blocks_filled(sequence);
  sequence.table_.truncate(sequence.num_computed_);
}

Sequence& SchedulerCore::hold_fork(Sequence& sequence, std::vector<TokenId> tokens) {
  PAGEDCORE_REQUIRE(!plan_is_open_, "hold_fork: the last plan is not committed");
  PAGEDCORE_REQUIRE(!tokens.empty(), "hold_fork: tokens must not be empty");
  SequenceGroup& group = *sequence.group_;
  reserve_more(group.held_, 1);
  if (group.spare_.empty()) reserve_forks(sequence, 1);
  Sequence& child = *group.spare_.back();
  const auto [end, _] = std::ranges::mismatch(sequence.tokens_, tokens);
  const auto num_common = static_cast<std::int32_t>(end - sequence.tokens_.begin());
  share_computed(sequence, child,
                 std::min(num_common, static_cast<std::int32_t>(tokens.size()) - 1));
  child.tokens_ = std::move(tokens);
  group.held_.push_back(std::move(group.spare_.back()));
  group.spare_.pop_back();
  kv_->on_blocks_filled(child);
  return child;
}

std::vector<TokenId> SchedulerCore::release(Sequence& sequence) {
  SequenceGroup& group = *sequence.group_;
  const auto found = std::ranges::find(group.held_, &sequence, &std::unique_ptr<Sequence>::get);
  PAGEDCORE_REQUIRE(found != group.held_.end(), "release: sequence ", sequence.id_, " is not held");
  kv_->release(sequence, true);
  sequences_.erase(sequence.id_);
  std::vector<TokenId> tokens = std::move(sequence.tokens_);
  group.held_.erase(found);
  erase_if_empty(group);
  return tokens;
}

void SchedulerCore::abort(RequestId request_id) {
  const auto found = groups_.find(request_id);
  if (found != groups_.end()) end_group(*found->second);
}

Sequence* SchedulerCore::find(SequenceId id) const {
  const auto found = sequences_.find(id);
  const bool is_known = found != sequences_.end() && !found->second->tokens_.empty();
  return is_known ? found->second : nullptr;
}

}  // namespace pagedcore
