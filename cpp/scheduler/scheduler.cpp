#include "pagedcore/scheduler.h"

#include <utility>

#include "cpp/scheduler/core.h"
#include "cpp/scheduler/paged_kv_manager.h"
#include "pagedcore/error.h"

namespace pagedcore {

namespace {

SchedulerConfig checked(const SchedulerConfig& config) {
  PAGEDCORE_REQUIRE(config.num_blocks >= 1, "num_blocks must be at least 1, got ",
                    config.num_blocks);
  PAGEDCORE_REQUIRE(config.num_host_blocks >= 0, "num_host_blocks must not be negative, got ",
                    config.num_host_blocks);
  return config;
}

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config)
    : Scheduler(checked(config), std::make_shared<PagedKvManager>(
                                     config.num_blocks, config.block_size,
                                     config.enable_prefix_caching, config.num_host_blocks)) {}
Scheduler::Scheduler(const SchedulerConfig& config, std::shared_ptr<KvManager> kv)
    : core_(std::make_unique<SchedulerCore>(config, std::move(kv))) {}
Scheduler::~Scheduler() = default;
Scheduler::Scheduler(Scheduler&&) noexcept = default;
Scheduler& Scheduler::operator=(Scheduler&&) noexcept = default;

Sequence& Scheduler::add(const GroupSpec& spec) { return core_->add(spec); }
Sequence& Scheduler::fork_request(Sequence& sequence, std::int32_t num_tokens,
                                  const GroupSpec& spec) {
  return core_->fork_request(sequence, num_tokens, spec);
}
const SequenceGroup& Scheduler::restore(const GroupSpec& spec,
                                        std::span<const SequenceSpec> sequences) {
  return core_->restore(spec, sequences);
}

const StepPlan& Scheduler::schedule() { return core_->schedule(); }
void Scheduler::commit() { core_->commit(); }
void Scheduler::abandon() { core_->abandon(); }
void Scheduler::retract() { core_->retract(); }
bool Scheduler::goes_on() const { return core_->goes_on(); }

Sequence& Scheduler::fork(Sequence& sequence, std::int32_t num_tokens) {
  return core_->fork(sequence, num_tokens);
}
void Scheduler::reserve_forks(Sequence& sequence, std::int32_t count) {
  core_->reserve_forks(sequence, count);
}
std::vector<TokenId> Scheduler::finish(Sequence& sequence) { return core_->finish(sequence); }
void Scheduler::hold(Sequence& sequence) { core_->hold(sequence); }
Sequence& Scheduler::hold_fork(Sequence& sequence, std::vector<TokenId> tokens) {
  return core_->hold_fork(sequence, std::move(tokens));
}
std::vector<TokenId> Scheduler::release(Sequence& held_sequence) {
  return core_->release(held_sequence);
}
void Scheduler::abort(RequestId request_id) { core_->abort(request_id); }

Sequence* Scheduler::find(SequenceId id) const { return core_->find(id); }
bool Scheduler::has_unfinished() const { return core_->has_unfinished(); }
void Scheduler::set_tenant_quota(std::string_view tenant, std::int32_t num_blocks) {
  core_->set_tenant_quota(tenant, num_blocks);
}
void Scheduler::set_costs(const PreemptionCosts& costs) { core_->set_costs(costs); }
SchedulerStats Scheduler::stats() const { return core_->stats(); }
KvMap Scheduler::kv_map() const { return core_->kv_map(); }
std::vector<std::string> Scheduler::check_invariants() const { return core_->check_invariants(); }

}  // namespace pagedcore
