#include "cpp/scheduler/core.h"

#include <algorithm>

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
  running_.reserve(config.max_num_seqs);
  plan_.spans.reserve(config.max_num_seqs);
  for (std::int32_t row = config.max_num_seqs - 1; row >= 0; --row) free_rows_.push_back(row);
}

SchedulerCore::~SchedulerCore() {
  kv_->end_step();
  for (const auto& [id, group] : groups_) kv_->release_salt(group->salt_);
}

void SchedulerCore::require_feasible(const GroupSpec& spec) const {
  const auto prompt_tokens = static_cast<std::int64_t>(spec.prompt.size());
  PAGEDCORE_REQUIRE(prompt_tokens >= 1, "the prompt must have at least one token");
  PAGEDCORE_REQUIRE(prompt_tokens <= config_.max_model_len, "the prompt has ", prompt_tokens,
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
      kv_->min_blocks(static_cast<std::int32_t>(prompt_tokens), spec.num_sequences, total);
  PAGEDCORE_REQUIRE(needed <= config_.num_blocks, "the request can never fit: ", prompt_tokens,
                    " prompt tokens and the first output of ", spec.num_sequences,
                    " sequence(s) take ", needed, " blocks of ", config_.block_size,
                    " tokens, the KV cache has ", config_.num_blocks);
}

Sequence& SchedulerCore::add(const GroupSpec& spec) {
  require_feasible(spec);
  if (config_.max_waiting > 0 &&
      static_cast<std::int32_t>(waiting_.size()) >= config_.max_waiting) {
    throw QueueFull(detail::concat("the waiting queue is full: ", waiting_.size(),
                                   " requests wait, max_waiting is ", config_.max_waiting));
  }
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
  group->sequences_.push_back(std::make_unique<Sequence>(
      next_sequence_id_++, *group, std::vector<TokenId>(spec.prompt.begin(), spec.prompt.end()),
      static_cast<std::int32_t>(spec.prompt.size()), kv_->make_table()));
  group->salt_ = kv_->acquire_salt(spec.cache_salt);
  Sequence& sequence = *group->sequences_[0];
  waiting_.emplace(key(*group), group.get());
  groups_.emplace(spec.request_id, std::move(group));
  return sequence;
}

void SchedulerCore::take_row(Sequence& sequence) {
  sequence.row_ = free_rows_.back();
  free_rows_.pop_back();
  sequence.first_changed_block_ = 0;
}

void SchedulerCore::give_row_back(Sequence& sequence) {
  if (sequence.row_ < 0) return;
  free_rows_.push_back(sequence.row_);
  sequence.row_ = -1;
}

void SchedulerCore::append_token(Sequence& sequence, TokenId token) {
  sequence.tokens_.push_back(token);
}

Sequence& SchedulerCore::fork(Sequence& sequence, std::int32_t num_tokens) {
  SequenceGroup& group = *sequence.group_;
  PAGEDCORE_REQUIRE(!plan_is_open_, "fork: the last plan is not committed");
  PAGEDCORE_REQUIRE(group.state_ == GroupState::kRunning, "fork: request ", group.request_id_,
                    " is not running");
  PAGEDCORE_REQUIRE(group.num_live() < group.num_sequences_, "fork: request ", group.request_id_,
                    " was added for ", group.num_sequences_, " sequences and has as many");
  PAGEDCORE_REQUIRE(num_tokens >= 1 && num_tokens <= sequence.num_tokens(),
                    "fork: num_tokens must be in [1, ", sequence.num_tokens(), "], got ",
                    num_tokens);
  PAGEDCORE_REQUIRE(sequence.waits_for_ == nullptr, "fork: sequence ", sequence.id_,
                    " is being rebuilt after a preemption");
  std::vector<TokenId> tokens;
  tokens.reserve(group.max_total_tokens_);
  tokens.assign(sequence.tokens_.begin(), sequence.tokens_.begin() + num_tokens);
  auto child = std::make_unique<Sequence>(next_sequence_id_++, group, std::move(tokens),
                                          std::min(sequence.num_prompt_tokens_, num_tokens),
                                          kv_->make_table());
  child->num_computed_ = std::min(num_tokens, sequence.num_computed_);
  kv_->fork(sequence, *child, pending_copies_);
  take_row(*child);
  group.sequences_.push_back(std::move(child));
  return *group.sequences_.back();
}

void SchedulerCore::release_blocks(Sequence& sequence, bool content_is_good) {
  kv_->release(sequence, content_is_good);
  give_row_back(sequence);
}

void SchedulerCore::remove_from_queue(SequenceGroup& group) {
  switch (group.state_) {
    case GroupState::kRunning:
      running_.erase(std::find(running_.begin(), running_.end(), &group));
      num_running_seqs_ -= group.num_sequences_;
      break;
    case GroupState::kWaiting:
      waiting_.erase(key(group));
      break;
    case GroupState::kPreempted:
    case GroupState::kSwapped:
      resumed_.erase(key(group));
      break;
  }
}

void SchedulerCore::end_group(SequenceGroup& group) {
  remove_from_queue(group);
  if (plan_is_open_) {
    std::erase_if(plan_.spans, [&](const Span& s) { return &s.sequence->group() == &group; });
  }
  for (const auto& sequence : group.sequences_) release_blocks(*sequence, !plan_is_open_);
  kv_->release_salt(group.salt_);
  groups_.erase(group.request_id_);
}

void SchedulerCore::finish(Sequence& sequence) {
  SequenceGroup& group = *sequence.group_;
  PAGEDCORE_REQUIRE(!plan_is_open_, "finish: the last plan is not committed");
  if (group.num_live() == 1) return end_group(group);
  // Siblings may wait for blocks that this sequence was to compute: then all start again.
  const bool is_rebuilding = std::ranges::any_of(
      group.sequences_, [&](const auto& sibling) { return sibling->waits_for_ == &sequence; });
  release_blocks(sequence, true);
  std::erase_if(group.sequences_, [&](const auto& sibling) { return sibling.get() == &sequence; });
  if (is_rebuilding) preempt(group, false);
}

void SchedulerCore::abort(RequestId request_id) {
  const auto found = groups_.find(request_id);
  if (found != groups_.end()) end_group(*found->second);
}

std::vector<std::string> SchedulerCore::check_invariants() const {
  std::vector<std::string> report = kv_->check_invariants();
  const auto complain = [&](const auto&... parts) {
    report.push_back(detail::concat("scheduler: ", parts...));
  };
  std::unordered_map<BlockId, std::int32_t> references;
  std::vector<char> rows(config_.max_num_seqs, 0);
  std::int32_t num_rows = 0;
  for (const auto& [id, group] : groups_) {
    const bool is_running = group->state_ == GroupState::kRunning;
    const Queue& queue = group->state_ == GroupState::kWaiting ? waiting_ : resumed_;
    if (is_running ? std::ranges::count(running_, group.get()) != 1
                   : !queue.contains(key(*group))) {
      complain("request ", id, " is not in the queue of its state");
    }
    for (const auto& sequence : group->sequences_) {
      for (const BlockId block : sequence->table()) ++references[block];
      if (sequence->num_computed_ > sequence->num_tokens() ||
          sequence->num_computed_ > sequence->table_.num_slots()) {
        complain("sequence ", sequence->id_, " of ", sequence->num_tokens(), " tokens counts ",
                 sequence->num_computed_, " as computed, its table has ",
                 sequence->table_.num_slots(), " slots");
      }
      if ((sequence->row_ >= 0) != is_running) {
        complain("sequence ", sequence->id_, " has row ", sequence->row_);
      } else if (is_running && std::exchange(rows[sequence->row_], 1) != 0) {
        complain("row ", sequence->row_, " is taken twice");
      }
      num_rows += sequence->row_ >= 0;
    }
  }
  if (running_.size() + resumed_.size() + waiting_.size() != groups_.size()) {
    complain(groups_.size(), " requests, but ", running_.size(), " run, ", resumed_.size(),
             " are preempted and ", waiting_.size(), " wait");
  }
  if (num_rows + static_cast<std::int32_t>(free_rows_.size()) != config_.max_num_seqs) {
    complain(num_rows, " rows taken and ", free_rows_.size(), " free of ", config_.max_num_seqs);
  }
  for (BlockId block = 0; block < config_.num_blocks; ++block) {
    const auto counted = references.find(block);
    const std::int32_t expected = counted == references.end() ? 0 : counted->second;
    if (kv_->allocator().ref_count(block) != expected) {
      complain("block ", block, " has ", kv_->allocator().ref_count(block),
               " references, the tables hold ", expected);
    }
  }
  return report;
}

}  // namespace pagedcore
