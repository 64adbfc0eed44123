// Every call of an engine with every one of its allocations failing in turn: a call that fails
// changes nothing, and what runs afterwards gives the tokens that it gives anyway.
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "pagedcore/engine.h"
#include "tests/native/check.h"
#include "tests/native/failing_new.h"
#include "tests/support/tiny_model.h"

using namespace pagedcore;

namespace {

using Tokens = std::vector<TokenId>;
using Outputs = std::map<std::pair<RequestId, std::int32_t>, Tokens>;

// All that a caller can see of an engine but for its times.
struct View {
  std::vector<std::vector<BlockId>> tables;
  std::vector<std::int32_t> num_tokens;
  std::vector<std::int32_t> references;
  std::vector<std::int64_t> counts;

  explicit View(const Engine& engine) {
    const KvMap map = engine.kv_map();
    for (const SequenceInfo& sequence : map.sequences) {
      tables.push_back(sequence.table);
      tables.push_back(sequence.host_table);
      num_tokens.push_back(sequence.num_tokens);
    }
    for (const BlockInfo& block : map.blocks) references.push_back(block.ref_count);
    const Stats stats = engine.stats();
    counts = {stats.num_waiting,  stats.num_running,       stats.num_preempted,
              stats.num_held,     stats.used_blocks,       stats.cached_blocks,
              stats.num_requests, stats.num_output_tokens, stats.used_host_blocks};
  }
  bool operator==(const View&) const = default;
};

std::int64_t num_failures = 0;
std::int64_t num_swaps = 0;
std::int64_t num_recomputes = 0;

// Calls `call` with its first, second, third ... allocation failing, until it succeeds. After each
// failure `check()` must hold.
template <typename Call, typename Check>
auto call_until_it_succeeds(const Call& call, const Check& check) {
  for (std::int64_t failing = 0;; ++failing) {
    test::allocations_until_failure = failing;
    try {
      auto result = call();
      test::allocations_until_failure = -1;
      return result;
    } catch (const std::bad_alloc&) {
      test::allocations_until_failure = -1;
      ++num_failures;
    }
    check();
  }
}

// A call that changes nothing where it fails, as all but step() do.
template <typename Call>
auto call_or_change_nothing(const Engine& engine, const Call& call) {
  const View before(engine);
  return call_until_it_succeeds(call, [&] {
    for (const std::string& line : engine.verify()) std::fprintf(stderr, "%s\n", line.c_str());
    CHECK(engine.verify().empty());
    CHECK(View(engine) == before);
  });
}

struct Runner {
  Engine& engine;
  bool fails;
  Outputs outputs = {};

  template <typename Call>
  auto operator()(const Call& call) {
    return fails ? call_or_change_nothing(engine, call) : call();
  }
  template <typename Call>
  void run(const Call& call) {
    (*this)([&] { return call(), 0; });
  }

  // A failed step may lose KV, which is computed again, but no token.
  void step() {
    const auto take_step = [&] { return engine.step(); };
    const std::int64_t num_output = engine.stats().num_output_tokens;
    const auto updates = !fails ? take_step() : call_until_it_succeeds(take_step, [&] {
      for (const std::string& line : engine.verify()) std::fprintf(stderr, "%s\n", line.c_str());
      CHECK(engine.verify().empty());
      CHECK(engine.stats().num_output_tokens == num_output);
    });
    for (const SequenceUpdate& update : updates) {
      Tokens& tokens = outputs[{update.request_id, update.index}];
      tokens.insert(tokens.end(), update.new_tokens.begin(), update.new_tokens.end());
    }
    CHECK(engine.verify().empty());
  }
  void steps(int count) {
    while (count-- > 0) step();
  }
};

Tokens make_prompt(int length, int first) {
  Tokens prompt;
  for (int i = 0; i < length; ++i) prompt.push_back((first + i * 7) % 61);
  return prompt;
}

SamplingParams sampled(std::int64_t seed) {
  SamplingParams params;
  params.seed = seed;
  params.max_tokens = 12;
  return params;
}

SamplingParams samples(std::int64_t seed) {
  SamplingParams params = sampled(seed);
  params.n = 3;
  params.frequency_penalty = 0.5f;
  params.logprobs = 1;
  return params;
}

SamplingParams best_samples(std::int64_t seed) {
  SamplingParams params = sampled(seed);
  params.n = 2;
  params.best_of = 3;
  params.logprobs = 2;
  return params;
}

SamplingParams beams() {
  SamplingParams params = sampled(0);
  params.beam_width = 3;
  params.n = 2;
  params.stop_token_ids = {1, 2, 3, 4, 5, 6, 7};
  return params;
}

// Every call, over groups of every kind, in a pool that is too small for them.
Outputs play(Engine& engine, bool fails) {
  Runner runner{engine, fails};
  const RequestOptions salted{
      .priority = 1, .tenant = "tenant", .cache_salt = "salt", .hold = true};
  RequestOptions held;
  held.hold = true;
  const auto add = [&](int length, int first, const SamplingParams& params,
                       const RequestOptions& options = {}) {
    const Tokens prompt = make_prompt(length, first);
    return runner([&] { return engine.add_request(prompt, params, options); });
  };
  const RequestId plain = add(10, 1, sampled(1), held);
  const RequestId grouped = add(9, 2, samples(2));
  runner.steps(3);
  const RequestId searched = add(8, 3, beams(), held);
  const RequestId ranked = add(7, 4, best_samples(4), salted);
  SamplingParams told = sampled(5);
  told.prompt_logprobs = 2;
  add(20, 5, told);
  runner.steps(4);
  runner.run([&] { engine.hold(grouped); });
  const RequestId forked =
      runner([&] { return engine.fork(grouped, 0, {}, samples(6), make_prompt(3, 6), {}); });
  std::vector<std::vector<std::byte>> saved;
  for (const RequestId id : {plain, grouped, searched, ranked}) {
    saved.push_back(runner([&] { return engine.save(id); }));
  }
  runner.steps(2);
  runner.run([&] { engine.finish_sequence(grouped, 0); });
  std::vector<RequestId> loaded;
  for (const auto& snapshot : saved) {
    loaded.push_back(runner([&] { return engine.load(snapshot); }));
    runner.step();
  }
  runner.run([&] { engine.abort(forked); });
  // How far it had come by then is a matter of time.
  std::erase_if(runner.outputs, [&](const auto& output) { return output.first.first == forked; });
  while (engine.has_unfinished()) runner.step();
  const SamplingParams after = sampled(7);
  runner([&] { return engine.fork(searched, 1, 9, after); });
  const auto turn = runner([&] { return engine.save(ranked, 1); });
  runner([&] { return engine.load(turn, &after); });
  while (engine.has_unfinished()) runner.step();
  for (RequestId id = 0; id < 30; ++id) runner.run([&] { engine.release(id); });
  CHECK(engine.stats().used_blocks == 0 && engine.stats().used_host_blocks == 0);
  CHECK(engine.stats().num_held == 0);
  return runner.outputs;
}

void test_failing_allocations(EngineConfig config) {
  const auto model = test::make_tiny_llama();
  const std::int64_t num_before = test::num_allocations;
  {
    const auto make = [&] {
      return std::make_unique<Engine>(model.first, model.second, make_cpu_backend({1, ""}), config);
    };
    const auto undisturbed = make();
    const Outputs wanted = play(*undisturbed, false);
    const auto disturbed = make();
    CHECK(play(*disturbed, true) == wanted);
    num_swaps += undisturbed->stats().num_swap_preemptions;
    num_recomputes += undisturbed->stats().num_recompute_preemptions;
  }
  CHECK(test::num_allocations == num_before);
}

}  // namespace

int main() {
  EngineConfig config;
  config.block_size = 4;
  config.max_model_len = 64;
  config.max_num_seqs = 16;
  config.max_num_batched_tokens = 32;
  for (const PreemptionMode mode : {PreemptionMode::kRecompute, PreemptionMode::kSwap}) {
    for (const std::int32_t num_blocks : {44, 200}) {
      config.num_blocks = num_blocks;
      config.preemption_mode = mode;
      config.swap_space_bytes = mode == PreemptionMode::kSwap ? 1 << 16 : 0;
      test_failing_allocations(config);
    }
  }
  CHECK(num_failures > 1000 && num_swaps > 0 && num_recomputes > 0);
}
