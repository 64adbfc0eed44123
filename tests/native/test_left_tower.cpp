// Drives the scheduler with a fake engine under pressure; the sanitizer presets run it too.
#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "pagedcore/error.h"
#include "pagedcore/scheduler.h"
#include "pagedcore/sequence.h"
#include "tests/native/check.h"

namespace {

using namespace pagedcore;

void expect_sound(const Scheduler& scheduler) {
  const std::vector<std::string> report = scheduler.check_invariants();
  for (const std::string& line : report) std::fprintf(stderr, "%s\n", line.c_str());
  CHECK(report.empty());
}

// No move or copy of a step may spoil what another of its moves reads.
void expect_sound(const StepPlan& plan) {
  CHECK(plan.swap_in.empty() || plan.swap_out.empty());
  std::vector<BlockId> written;
  for (const BlockCopy& copy : plan.copies) written.push_back(copy.dst);
  std::ranges::sort(written);
  CHECK(std::ranges::adjacent_find(written) == written.end());
  for (const BlockCopy& copy : plan.copies) CHECK(!std::ranges::binary_search(written, copy.src));
  for (const BlockCopy& move : plan.swap_in) CHECK(!std::ranges::binary_search(written, move.dst));
}

// An engine that samples random tokens and ends, forks and holds sequences at random.
class FakeEngine {
 public:
  FakeEngine(const SchedulerConfig& config, unsigned seed) : scheduler_(config), random_(seed) {
    scheduler_.set_tenant_quota("poor", config.num_blocks / 2);
    // One block costs as much to move as to compute, and a few tokens ride along free.
    scheduler_.set_costs({.prefill_tokens_per_s = 100,
                          .swap_blocks_per_s = 200.0 / config.block_size,
                          .min_step_s = seed % 2 * 0.1});
  }

  void add_request() {
    std::vector<TokenId> prompt(1 + random_() % 40);
    for (TokenId& token : prompt) token = random_token();
    const GroupSpec spec{.request_id = next_request_++,
                         .prompt = prompt,
                         .num_sequences = static_cast<std::int32_t>(1 + random_() % 4),
                         .priority = random_() % 8 == 0 ? -1 : 0,
                         .tenant = random_() % 4 == 0 ? "poor" : "rich",
                         .cache_salt = random_() % 8 == 0 ? "salt" : "",
                         .read_prefix_cache = random_() % 8 != 0};
    try {
      if (!held_.empty() && random_() % 2 == 0) {
        Sequence& parent = *scheduler_.find(held_.back());
        scheduler_.fork_request(parent, 1 + random_() % parent.num_tokens(), spec);
      } else if (random_() % 16 == 0 && prompt.size() > 1) {
        scheduler_.restore(spec, prompt, static_cast<std::int32_t>(prompt.size()) - 1);
      } else {
        scheduler_.add(spec);
      }
    } catch (const InvalidArgument&) {
    }
  }

  void step() {
    const StepPlan plan = scheduler_.schedule();
    expect_sound(plan);
    expect_sound(scheduler_);
    if (random_() % 64 == 0) {
      scheduler_.abandon();
    } else {
      scheduler_.commit();
      for (const Span& span : plan.spans) {
        CHECK(span.query_len > 0);
        if (span.reaches_end) sample(*span.sequence);
      }
    }
    for (const RequestId request : plan.capacity_exceeded) scheduler_.abort(request);
    if (random_() % 32 == 0) scheduler_.abort(next_request_ - random_() % 32);
    if (!held_.empty() && random_() % 8 == 0) release_one();
    expect_sound(scheduler_);
  }

  void drain() {
    while (!held_.empty()) release_one();
    for (int i = 0; i < 50000 && scheduler_.has_unfinished(); ++i) step_and_release();
    CHECK(!scheduler_.has_unfinished());
    const SchedulerStats stats = scheduler_.stats();
    CHECK(stats.used_slots == 0 && stats.reserved_slots == 0 && stats.host_blocks_used == 0);
  }

  SchedulerStats stats() const { return scheduler_.stats(); }

 private:
  TokenId random_token() { return static_cast<TokenId>(random_() % 2); }

  void release_one() {
    scheduler_.release(*scheduler_.find(held_.back()));
    held_.pop_back();
  }

  void step_and_release() {
    step();
    while (!held_.empty()) release_one();
  }

  void sample(Sequence& sequence) {
    const SequenceGroup& group = sequence.group();
    while (group.num_live() < group.num_sequences() && random_() % 8 != 0) {
      scheduler_.append_token(scheduler_.fork(sequence, sequence.num_tokens()), random_token());
    }
    scheduler_.append_token(sequence, random_token());
    if (sequence.num_tokens() < group.max_total_tokens() && random_() % 16 != 0) return;
    if (held_.size() < 2 && random_() % 4 == 0) {
      held_.push_back(sequence.id());
      scheduler_.hold(sequence);
    } else {
      scheduler_.finish(sequence);
    }
  }

  Scheduler scheduler_;
  std::mt19937 random_;
  RequestId next_request_ = 0;
  std::vector<SequenceId> held_;
};

SchedulerStats run_under_pressure(SchedulerConfig config, unsigned seed) {
  config.num_blocks = 128 / config.block_size;
  config.max_num_seqs = 12;
  config.max_num_batched_tokens = 24;
  config.max_model_len = 64;
  config.headroom_tokens = static_cast<std::int32_t>(seed % 8);
  FakeEngine engine(config, seed);
  for (int i = 0; i < 2000; ++i) {
    if (i % 6 == 0) engine.add_request();
    engine.step();
  }
  engine.drain();
  return engine.stats();
}

}  // namespace

int main() {
  SchedulerStats sum;
  unsigned seed = 0;
  for (const std::int32_t block_size : {1, 4, 16}) {
    for (const PreemptionMode mode :
         {PreemptionMode::kRecompute, PreemptionMode::kSwap, PreemptionMode::kAuto}) {
      for (const bool flag : {true, false}) {
        const SchedulerStats stats = run_under_pressure({.block_size = block_size,
                                                         .enable_prefix_caching = flag,
                                                         .num_host_blocks = 96 / block_size,
                                                         .preemption_mode = mode,
                                                         .tail_preemption = seed % 3 != 0,
                                                         .partial_admission = seed % 4 != 0},
                                                        ++seed);
        sum.tail_preemptions += stats.tail_preemptions;
        sum.recompute_preemptions += stats.recompute_preemptions;
        sum.swap_preemptions += stats.swap_preemptions;
        sum.swapped_in_blocks += stats.swapped_in_blocks;
        sum.prompt_tokens_hit += stats.prompt_tokens_hit;
      }
    }
  }
  CHECK(sum.tail_preemptions > 100 && sum.recompute_preemptions > 100);
  CHECK(sum.swap_preemptions > 100 && sum.swapped_in_blocks > 100 && sum.prompt_tokens_hit > 100);
  return 0;
}
