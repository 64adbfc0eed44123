// Host time of the left tower: a decode step (schedule + commit + append), fork, allocate and
// release, and the lookup of a long prompt. Prints text for people on stderr and JSON lines on
// stdout.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "pagedcore/block_allocator.h"
#include "pagedcore/block_table.h"
#include "pagedcore/prefix_cache.h"
#include "pagedcore/scheduler.h"
#include "pagedcore/sequence.h"

namespace {

using namespace pagedcore;
using Clock = std::chrono::steady_clock;

double ns_since(Clock::time_point start) {
  return std::chrono::duration<double, std::nano>(Clock::now() - start).count();
}

// `target_ns` is what the project asks of the median; 0: none.
void report(const std::string& name, std::vector<double> samples_ns, double target_ns) {
  std::ranges::sort(samples_ns);
  const double median = samples_ns[samples_ns.size() / 2];
  const double p99 = samples_ns[samples_ns.size() * 99 / 100];
  std::fprintf(stderr, "%-34s median %11.1f ns   p99 %11.1f ns", name.c_str(), median, p99);
  if (target_ns > 0)
    std::fprintf(stderr, "   %5.1f%% of the %g ns allowed", 100 * median / target_ns, target_ns);
  std::fprintf(stderr, "\n");
  std::printf(
      "{\"bench\": \"scheduler\", \"name\": \"%s\", \"median_ns\": %.1f, \"p99_ns\": %.1f, "
      "\"target_ns\": %.1f, \"samples\": %zu}\n",
      name.c_str(), median, p99, target_ns, samples_ns.size());
}

// Steady decode of `num_running` requests, nothing ends.
void bench_decode(std::int32_t num_running, double target_ns) {
  constexpr int kPromptTokens = 64;
  constexpr int kWarmUpSteps = 200;
  constexpr int kSteps = 1500;
  const std::int32_t max_model_len = kPromptTokens + kWarmUpSteps + kSteps + 64;
  Scheduler scheduler({.num_blocks = num_running * (max_model_len / 16 + 2),
                       .max_num_seqs = num_running,
                       .max_num_batched_tokens = std::max(2048, num_running * kPromptTokens),
                       .max_model_len = max_model_len});
  std::vector<TokenId> prompt(kPromptTokens);
  for (std::int32_t i = 0; i < num_running; ++i) {
    for (int j = 0; j < kPromptTokens; ++j) prompt[j] = i * kPromptTokens + j;
    prompt.resize(kPromptTokens - i % 16);  // so that blocks fill at different steps
    scheduler.add({.request_id = i, .prompt = prompt});
    prompt.resize(kPromptTokens);
  }
  std::vector<double> samples;
  for (int step = 0; step < kWarmUpSteps + kSteps; ++step) {
    const Clock::time_point start = Clock::now();
    const StepPlan& plan = scheduler.schedule();
    scheduler.commit();
    for (const Span& span : plan.spans) {
      if (span.reaches_end) scheduler.append_token(*span.sequence, step);
    }
    if (step >= kWarmUpSteps) samples.push_back(ns_since(start));
  }
  report("decode_step_" + std::to_string(num_running), std::move(samples), target_ns);
}

// A request of two sequences of 2,048 tokens; the second is forked and ended over and over.
void bench_fork() {
  constexpr std::int32_t kTokens = 2048;
  Scheduler scheduler({.num_blocks = 512, .max_num_batched_tokens = 4096, .max_model_len = 4096});
  const std::vector<TokenId> prompt(kTokens, 7);
  Sequence& parent = scheduler.add({.request_id = 0, .prompt = prompt, .num_sequences = 2});
  scheduler.schedule();
  scheduler.commit();
  std::vector<double> samples;
  for (int i = 0; i < 20000; ++i) {
    const Clock::time_point start = Clock::now();
    Sequence& child = scheduler.fork(parent, kTokens);
    samples.push_back(ns_since(start));
    scheduler.finish(child);
  }
  report("fork_2048_tokens", {samples.begin() + 1000, samples.end()}, 1000);
}

void bench_allocator() {
  constexpr int kOps = 1000;
  BlockAllocator allocator(8192);
  std::vector<BlockId> blocks(kOps);
  std::vector<double> samples;
  for (int i = 0; i < 5000; ++i) {
    const Clock::time_point start = Clock::now();
    for (BlockId& block : blocks) block = *allocator.try_allocate();
    for (const BlockId block : blocks) allocator.release(block);
    samples.push_back(ns_since(start) / (2 * kOps));
  }
  report("allocator_op", {samples.begin() + 500, samples.end()}, 20);
}

void bench_prefix_lookup() {
  constexpr std::int32_t kTokens = 32768;
  constexpr std::int32_t kBlockSize = 16;
  BlockAllocator allocator(2 * kTokens / kBlockSize);
  PrefixCache cache(allocator, kBlockSize);
  BlockTable table(allocator, kBlockSize);
  std::vector<TokenId> tokens(kTokens);
  for (std::int32_t i = 0; i < kTokens; ++i) tokens[i] = i * 7919 % 50257;
  table.try_reserve(kTokens);
  cache.insert(tokens, table);
  std::vector<double> samples;
  std::int64_t found = 0;
  for (int i = 0; i < 2000; ++i) {
    const Clock::time_point start = Clock::now();
    found += cache.match(tokens).num_tokens;
    samples.push_back(ns_since(start));
  }
  if (found != 2000ll * (kTokens - 1)) std::fprintf(stderr, "prefix lookup missed\n");
  report("prefix_lookup_32k_tokens", {samples.begin() + 100, samples.end()}, 200000);
}

}  // namespace

int main() {
  bench_decode(1, 0);
  bench_decode(32, 0);
  bench_decode(256, 8000);
  bench_decode(1024, 0);
  bench_fork();
  bench_allocator();
  bench_prefix_lookup();
  return 0;
}
