#include "pagedcore/scheduler.h"

#include <utility>

#include "cpp/scheduler/core.h"
#include "cpp/scheduler/paged_kv_manager.h"

namespace pagedcore {

Scheduler::Scheduler(const SchedulerConfig& config)
    : Scheduler(config, std::make_shared<PagedKvManager>(config.num_blocks, config.block_size,
                                                         config.enable_prefix_caching)) {}
Scheduler::Scheduler(const SchedulerConfig& config, std::shared_ptr<KvManager> kv)
    : core_(std::make_unique<SchedulerCore>(config, std::move(kv))) {}
Scheduler::~Scheduler() = default;
Scheduler::Scheduler(Scheduler&&) noexcept = default;
Scheduler& Scheduler::operator=(Scheduler&&) noexcept = default;

Sequence& Scheduler::add(const GroupSpec& spec) { return core_->add(spec); }
const StepPlan& Scheduler::schedule() { return core_->schedule(); }
void Scheduler::commit() { core_->commit(); }
void Scheduler::append_token(Sequence& sequence, TokenId token) {
  core_->append_token(sequence, token);
}
Sequence& Scheduler::fork(Sequence& sequence, std::int32_t num_tokens) {
  return core_->fork(sequence, num_tokens);
}
void Scheduler::finish(Sequence& sequence) { core_->finish(sequence); }
void Scheduler::abort(RequestId request_id) { core_->abort(request_id); }
bool Scheduler::has_unfinished() const { return core_->has_unfinished(); }
std::vector<std::string> Scheduler::check_invariants() const { return core_->check_invariants(); }

}  // namespace pagedcore
