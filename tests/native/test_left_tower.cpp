// Drives the scheduler with a fake engine under pressure; the sanitizer presets run it too.
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

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

// One step of an engine that samples random tokens, forks every group to its size once its prompt
// is computed, and finishes sequences at random.
void run_step(Scheduler& scheduler, std::mt19937& random) {
  const StepPlan plan = scheduler.schedule();
  expect_sound(scheduler);
  scheduler.commit();
  for (const Span& span : plan.spans) {
    CHECK(span.query_len > 0);
    if (!span.reaches_end) continue;
    Sequence& sequence = *span.sequence;
    const SequenceGroup& group = sequence.group();
    while (group.num_live() < group.num_sequences() && random() % 8 != 0) {
      Sequence& child = scheduler.fork(sequence, sequence.num_tokens());
      scheduler.append_token(child, static_cast<TokenId>(random() % 3));
    }
    scheduler.append_token(sequence, static_cast<TokenId>(random() % 3));
    if (sequence.num_tokens() >= group.max_total_tokens() || random() % 16 == 0) {
      scheduler.finish(sequence);
    }
  }
  for (const RequestId request : plan.capacity_exceeded) scheduler.abort(request);
  expect_sound(scheduler);
}

void run_under_pressure(bool enable_prefix_caching, std::int32_t block_size, unsigned seed) {
  std::mt19937 random(seed);
  Scheduler scheduler({.num_blocks = 96 / block_size,
                       .block_size = block_size,
                       .max_num_seqs = 12,
                       .max_num_batched_tokens = 24,
                       .max_model_len = 64,
                       .enable_prefix_caching = enable_prefix_caching});
  std::vector<TokenId> prompt;
  for (int step = 0; step < 3000; ++step) {
    if (random() % 8 == 0) {
      prompt.resize(1 + random() % 40);
      for (TokenId& token : prompt) token = static_cast<TokenId>(random() % 2);
      try {
        scheduler.add({.request_id = step,
                       .prompt = prompt,
                       .num_sequences = static_cast<std::int32_t>(1 + random() % 4)});
      } catch (const std::exception&) {
      }
    }
    if (random() % 32 == 0) scheduler.abort(step - static_cast<int>(random() % 32));
    run_step(scheduler, random);
  }
  for (int step = 0; step < 50000 && scheduler.has_unfinished(); ++step)
    run_step(scheduler, random);
  CHECK(!scheduler.has_unfinished());
  expect_sound(scheduler);
}

}  // namespace

int main() {
  for (const std::int32_t block_size : {1, 4, 16}) {
    for (unsigned seed = 0; seed < 2; ++seed) {
      run_under_pressure(true, block_size, seed);
      run_under_pressure(false, block_size, seed);
    }
  }
  return 0;
}
