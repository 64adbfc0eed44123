// What the scheduler tells of itself: statistics, the block map, and whether it is sound.
#include <algorithm>

#include "cpp/scheduler/core.h"
#include "pagedcore/error.h"
#include "pagedcore/prefix_cache.h"

namespace pagedcore {
namespace {

// Calls visit(sequence, group state) for live and held sequences alike.
template <typename Groups, typename Visit>
void for_each_sequence(const Groups& groups, const Visit& visit) {
  for (const auto& [_, group] : groups) {
    for (const auto& sequence : group->sequences()) visit(*sequence, group->state());
    for (const auto& sequence : group->held()) visit(*sequence, GroupState::kFinished);
  }
}

}  // namespace

SchedulerStats SchedulerCore::stats() const {
  SchedulerStats stats = counters_;
  const BlockAllocator& allocator = kv_->allocator();
  const std::int64_t block_size = kv_->block_size();
  std::vector<std::int32_t> tokens_in(allocator.num_blocks(), 0);  // each block holds
  for_each_sequence(groups_, [&](const Sequence& sequence, GroupState) {
    std::int64_t rest = sequence.num_computed();
    for (const BlockId block : sequence.table()) {
      const auto stored = static_cast<std::int32_t>(std::clamp<std::int64_t>(rest, 0, block_size));
      tokens_in[block] = std::max(tokens_in[block], stored);
      rest -= block_size;
    }
    stats.logical_blocks += static_cast<std::int32_t>(sequence.table().size());
  });
  for (const std::int32_t tokens : tokens_in) stats.used_slots += tokens;
  for (BlockId block = 0; block < allocator.num_blocks(); ++block) {
    stats.physical_blocks += allocator.ref_count(block) > 0;
  }
  stats.total_slots = allocator.num_blocks() * block_size;
  stats.cached_slots = allocator.num_cached() * block_size;
  stats.free_slots = allocator.num_free() * block_size;
  stats.reserved_slots =
      stats.total_slots - stats.used_slots - stats.cached_slots - stats.free_slots;
  if (const BlockAllocator* host = kv_->host_allocator()) stats.host_blocks_used = host->num_held();
  for (const auto& [_, group] : groups_) {
    stats.held_sequences += static_cast<std::int32_t>(group->held_.size());
  }
  stats.running_groups = static_cast<std::int32_t>(running_.size());
  for (const SequenceGroup* group : running_) stats.running_sequences += group->num_live();
  stats.resumed_groups = static_cast<std::int32_t>(resumed_.size());
  stats.waiting_groups = static_cast<std::int32_t>(waiting_.size());
  stats.num_steps = step_;
  return stats;
}

KvMap SchedulerCore::kv_map() const {
  const BlockAllocator& allocator = kv_->allocator();
  const PrefixCache* cache = kv_->prefix_cache();
  KvMap map;
  map.step = step_;
  map.block_size = kv_->block_size();
  map.blocks.resize(allocator.num_blocks());
  for (BlockId block = 0; block < allocator.num_blocks(); ++block) {
    BlockInfo& info = map.blocks[block];
    info.state = allocator.is_held(block)       ? BlockState::kHeld
                 : allocator.is_reusable(block) ? BlockState::kCached
                                                : BlockState::kFree;
    info.ref_count = allocator.ref_count(block);
    info.last_use = allocator.last_use(block);
    if (cache == nullptr) continue;
    info.num_findable_tokens = cache->num_registered_tokens(block);
    info.hash = cache->block_hash(block);
  }
  for_each_sequence(groups_, [&](const Sequence& sequence, GroupState state) {
    for (const BlockId block : sequence.table()) {
      map.blocks[block].owners.push_back(sequence.id());
      if (state == GroupState::kRunning) map.blocks[block].last_use = step_;
    }
    const auto host = sequence.host_table();
    map.sequences.push_back({.id = sequence.id(),
                             .request_id = sequence.request_id(),
                             .state = state,
                             .num_tokens = sequence.num_tokens(),
                             .num_computed = sequence.num_computed(),
                             .table = {sequence.table().begin(), sequence.table().end()},
                             .host_table = {host.begin(), host.end()}});
  });
  std::ranges::sort(map.sequences, {}, &SequenceInfo::id);
  return map;
}

bool SchedulerCore::has_unfinished() const {
  return !running_.empty() || !resumed_.empty() || !waiting_.empty();
}

std::vector<std::string> SchedulerCore::check_invariants() const {
  std::vector<std::string> report = kv_->check_invariants();
  check_queues(report);
  check_sequences(report);
  return report;
}

void SchedulerCore::check_queues(std::vector<std::string>& report) const {
  const auto complain = [&](const auto&... parts) {
    report.push_back(detail::concat("scheduler: ", parts...));
  };
  std::size_t num_live_groups = 0;
  std::int32_t num_partial = 0;
  std::int32_t num_waiting_holders = 0;
  for (const auto& [id, group] : groups_) {
    num_partial += group->is_partial_;
    num_waiting_holders += group->waits_with_blocks_;
    num_live_groups += group->state_ != GroupState::kFinished;
    if ((group->state_ == GroupState::kFinished) != group->sequences_.empty()) {
      complain("request ", id, " has ", group->num_live(), " live sequences in the wrong state");
    }
    const GroupQueue& queue = group->state_ == GroupState::kWaiting ? waiting_ : resumed_;
    const bool is_queued = group->state_ == GroupState::kRunning
                               ? std::ranges::count(running_, group.get()) == 1
                               : queue.contains(key(*group));
    if (is_queued == (group->state_ == GroupState::kFinished)) {
      complain("request ", id, " is not in the queue of its state");
    }
    if (group->num_live() > group->num_sequences_) {
      complain("request ", id, " has ", group->num_live(), " sequences of ", group->num_sequences_);
    }
  }
  if (running_.size() + resumed_.size() + waiting_.size() != num_live_groups) {
    complain(num_live_groups, " requests, but ", running_.size(), " run, ", resumed_.size(),
             " are preempted and ", waiting_.size(), " wait");
  }
  if (!std::ranges::is_sorted(running_, {}, [](const auto* group) { return key(*group); })) {
    complain("the running groups are out of order");
  }
  if (num_partial != num_partial_ || num_waiting_holders != num_waiting_holders_) {
    complain("counts ", num_partial_, " partial groups and ", num_waiting_holders_,
             " waiting with blocks, there are ", num_partial, " and ", num_waiting_holders);
  }
}

void SchedulerCore::check_sequences(std::vector<std::string>& report) const {
  const auto complain = [&](const auto&... parts) {
    report.push_back(detail::concat("scheduler: ", parts...));
  };
  const BlockAllocator& allocator = kv_->allocator();
  const BlockAllocator* host_allocator = kv_->host_allocator();
  std::vector<std::int32_t> references(allocator.num_blocks(), 0);
  std::vector<std::int32_t> host_references(host_allocator ? host_allocator->num_blocks() : 0, 0);
  std::vector<char> rows(config_.max_num_seqs, 0);
  std::int32_t num_rows = 0;
  for_each_sequence(groups_, [&](const Sequence& sequence, GroupState state) {
    for (const BlockId block : sequence.table()) ++references[block];
    for (const BlockId block : sequence.host_table()) ++host_references[block];
    const std::int64_t num_slots = sequence.table_.num_slots() + sequence.host_table_.num_slots();
    const bool may_have_host_blocks = state == GroupState::kSwapped || sequence.group_->is_partial_;
    if (sequence.host_table_.num_blocks() > 0 && !may_have_host_blocks) {
      complain("sequence ", sequence.id_, " runs with ", sequence.host_table_.num_blocks(),
               " blocks on the host");
    }
    if (sequence.num_computed_ > sequence.num_tokens() || sequence.num_computed_ > num_slots) {
      complain("sequence ", sequence.id_, " of ", sequence.num_tokens(), " tokens counts ",
               sequence.num_computed_, " as computed, its table has ", num_slots, " slots");
    }
    if (sequences_.find(sequence.id_) == sequences_.end()) {
      complain("sequence ", sequence.id_, " is not found by its id");
    }
    if ((sequence.row_ >= 0) != (state == GroupState::kRunning)) {
      complain("sequence ", sequence.id_, " has row ", sequence.row_);
    } else if (sequence.row_ >= 0 && std::exchange(rows[sequence.row_], 1) != 0) {
      complain("row ", sequence.row_, " is taken twice");
    }
    num_rows += sequence.row_ >= 0;
    const PrefixCache* cache = kv_->prefix_cache();
    for (std::int32_t i = 0; cache != nullptr && i < sequence.num_registered_blocks_; ++i) {
      if (!cache->is_registered(sequence.table()[i])) {
        complain("block ", i, " of sequence ", sequence.id_, " is not registered");
      }
    }
  });
  if (num_rows + static_cast<std::int32_t>(free_rows_.size()) != config_.max_num_seqs) {
    complain(num_rows, " rows taken and ", free_rows_.size(), " free of ", config_.max_num_seqs);
  }
  const auto check_references = [&](const BlockAllocator& pool,
                                    const std::vector<std::int32_t>& expected, const char* name) {
    for (BlockId block = 0; block < pool.num_blocks(); ++block) {
      if (pool.ref_count(block) == expected[block]) continue;
      complain(name, " block ", block, " has ", pool.ref_count(block),
               " references, the tables hold ", expected[block]);
    }
  };
  check_references(allocator, references, "device");
  if (host_allocator != nullptr) check_references(*host_allocator, host_references, "host");
}

}  // namespace pagedcore
