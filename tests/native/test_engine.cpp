// The engine under pressure, with failing allocations and failing steps; for the sanitizers too.
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "pagedcore/engine.h"
#include "pagedcore/error.h"
#include "tests/native/check.h"
#include "tests/support/faulty_backend.h"
#include "tests/support/tiny_model.h"

using namespace pagedcore;

namespace {

using Tokens = std::vector<TokenId>;
using Outputs = std::map<std::pair<RequestId, std::int32_t>, Tokens>;

struct Fixture {
  std::pair<ModelConfig, Weights> model = test::make_tiny_llama();
  test::Faults faults;

  std::unique_ptr<Engine> make(const EngineConfig& config) {
    return std::make_unique<Engine>(
        model.first, model.second,
        std::make_unique<test::FaultyBackend>(make_cpu_backend({1, ""}), faults), config);
  }
};

EngineConfig make_config(std::int32_t num_blocks) {
  EngineConfig config;
  config.num_blocks = num_blocks;
  config.block_size = 4;
  config.max_model_len = 256;
  config.max_num_seqs = 16;
  config.max_num_batched_tokens = 64;
  config.swap_space_bytes = 1 << 16;
  return config;
}

Tokens make_prompt(std::mt19937& random) {
  Tokens prompt(1 + random() % 20);
  for (TokenId& token : prompt) token = static_cast<TokenId>(random() % 61);
  return prompt;
}

SamplingParams make_params(std::mt19937& random) {
  SamplingParams params;
  params.max_tokens = 1 + static_cast<std::int32_t>(random() % 20);
  params.seed = static_cast<std::int64_t>(random());
  params.logprobs = static_cast<std::int32_t>(random() % 4) - 1;
  switch (random() % 6) {
    case 0:
      params.temperature = 0.0f;
      break;
    case 1:
      params.n = 3;
      break;
    case 2:
      params.n = 2;
      params.best_of = 4;
      break;
    case 3:
      params.beam_width = 3;
      params.n = 2;
      params.logprobs = -1;
      params.stop_token_ids = {1, 2, 3};
      break;
    case 4:
      params.prompt_logprobs = 2;
      params.frequency_penalty = 0.5f;
      break;
    default:
      params.top_p = 0.8f;
      params.top_k = 20;
  }
  return params;
}

void collect(std::span<const SequenceUpdate> updates, Outputs& outputs) {
  for (const SequenceUpdate& update : updates) {
    Tokens& tokens = outputs[{update.request_id, update.index}];
    tokens.insert(tokens.end(), update.new_tokens.begin(), update.new_tokens.end());
    CHECK(update.metrics != nullptr && update.metrics->num_prompt_tokens > 0);
  }
}

void run(Engine& engine, Outputs& outputs) {
  while (engine.has_unfinished()) {
    collect(engine.step(), outputs);
    CHECK(engine.verify().empty());
  }
}

void test_pressure_changes_nothing(PreemptionMode mode, bool is_asynchronous) {
  Fixture fixture;
  fixture.faults.is_asynchronous = is_asynchronous;
  std::mt19937 random(7);
  EngineConfig config = make_config(24);
  config.preemption_mode = mode;
  const auto engine = fixture.make(config);
  std::vector<std::pair<RequestId, std::pair<Tokens, SamplingParams>>> requests;
  Outputs outputs;
  for (int i = 0; i < 60; ++i) {
    const Tokens prompt = make_prompt(random);
    const SamplingParams params = make_params(random);
    requests.push_back({engine->add_request(prompt, params), {prompt, params}});
    for (std::uint32_t j = random() % 3; j > 0; --j) collect(engine->step(), outputs);
    CHECK(engine->verify().empty());
  }
  run(*engine, outputs);
  CHECK(engine->stats().used_blocks == 0);
  CHECK(engine->stats().num_recompute_preemptions + engine->stats().num_swap_preemptions > 0);
  for (const auto& [id, request] : requests) {
    const auto alone = fixture.make(make_config(200));
    const RequestId only = alone->add_request(request.first, request.second);
    Outputs wanted;
    run(*alone, wanted);
    for (const auto& [key, tokens] : wanted) CHECK(outputs.at({id, key.second}) == tokens);
    CHECK(only == 0);
  }
}

void test_memory_comes_back() {
  Fixture fixture;
  std::mt19937 random(3);
  for (int failing = 0; failing < 12; ++failing) {
    fixture.faults.allocations_until_failure = failing;
    bool failed = false;
    try {
      const auto engine = fixture.make(make_config(24));
      engine->add_request(make_prompt(random), make_params(random));
      engine->step();
    } catch (const OutOfMemory&) {
      failed = true;
    }
    CHECK(failed == (fixture.faults.allocations_until_failure < 0));
    CHECK(fixture.faults.num_allocations == 0);
  }
}

// A step that fails throws and loses nothing: what it computed is computed again.
void test_failed_steps_change_nothing(bool is_asynchronous) {
  Fixture fixture;
  fixture.faults.is_asynchronous = is_asynchronous;
  std::mt19937 random(11);
  const auto engine = fixture.make(make_config(40));
  std::vector<std::pair<Tokens, SamplingParams>> requests;
  for (int i = 0; i < 12; ++i) requests.emplace_back(make_prompt(random), make_params(random));
  for (const auto& [prompt, params] : requests) engine->add_request(prompt, params);
  Outputs outputs;
  int num_failures = 0;
  while (engine->has_unfinished()) {
    fixture.faults.ops_until_failure =
        random() % 3 == 0 ? static_cast<std::int64_t>(random() % 20) : -1;
    try {
      collect(engine->step(), outputs);
    } catch (const DeviceError&) {
      ++num_failures;
    }
    CHECK(engine->verify().empty());
  }
  CHECK(num_failures > 5);
  fixture.faults.ops_until_failure = -1;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const auto alone = fixture.make(make_config(200));
    alone->add_request(requests[i].first, requests[i].second);
    Outputs wanted;
    run(*alone, wanted);
    for (const auto& [key, tokens] : wanted) {
      CHECK(outputs.at({static_cast<RequestId>(i), key.second}) == tokens);
    }
  }
  CHECK(engine->stats().used_blocks == 0);
}

// Steps that start before the tokens of the last one are known, while sequences stop, are ended,
// aborted and forked.
void test_looking_ahead_changes_nothing() {
  Fixture fixture;
  fixture.faults.is_asynchronous = true;
  std::mt19937 random(5);
  const auto engine = fixture.make(make_config(200));
  std::map<RequestId, std::pair<Tokens, SamplingParams>> requests;
  Outputs outputs;
  std::map<RequestId, bool> is_cut;
  for (int i = 0; i < 40; ++i) {
    SamplingParams params;
    params.max_tokens = 5 + static_cast<std::int32_t>(random() % 30);
    params.seed = static_cast<std::int64_t>(random());
    if (random() % 2 == 0) params.temperature = 0.0f;
    if (random() % 2 == 0) params.stop_token_ids = {1, 2, 3, 4, 5, 6};
    if (random() % 4 == 0) params.n = 2;
    Tokens prompt = make_prompt(random);
    RequestId id = 0;
    if (random() % 4 == 0 && engine->has_unfinished()) {
      const RequestId parent = std::prev(requests.end())->first;
      try {
        prompt = engine->tokens(parent);
        id = engine->fork(parent, 0, {}, params);
      } catch (const InvalidArgument&) {
        id = engine->add_request(prompt, params);  // the parent has ended
      }
    } else {
      id = engine->add_request(prompt, params);
    }
    requests[id] = {prompt, params};
    for (std::uint32_t j = random() % 12; j > 0; --j) {
      collect(engine->step(), outputs);
      CHECK(engine->verify().empty());
    }
    const RequestId victim = static_cast<RequestId>(random() % requests.size());
    if (random() % 6 == 0) engine->abort(victim), is_cut[victim] = true;
    if (random() % 6 == 0) {
      try {
        engine->finish_sequence(victim, 0), is_cut[victim] = true;
      } catch (const InvalidArgument&) {
        // Its sequences are still to part.
      }
    }
  }
  run(*engine, outputs);
  CHECK(engine->stats().used_blocks == 0);
  CHECK(fixture.faults.num_followed > 50);
  fixture.faults.is_asynchronous = false;
  for (const auto& [id, request] : requests) {
    const auto alone = fixture.make(make_config(200));
    alone->add_request(request.first, request.second);
    Outputs wanted;
    run(*alone, wanted);
    for (const auto& [key, tokens] : wanted) {
      const Tokens& got = outputs[{id, key.second}];
      if (is_cut[id]) {
        CHECK(got.size() <= tokens.size() && std::equal(got.begin(), got.end(), tokens.begin()));
      } else {
        CHECK(got == tokens);
      }
    }
  }
}

// Random mixes of everything that a caller can do, verified after each step.
void test_random_operations(std::uint32_t seed, int num_operations, bool is_asynchronous) {
  Fixture fixture;
  fixture.faults.is_asynchronous = is_asynchronous;
  std::mt19937 random(seed);
  EngineConfig config = make_config(20 + static_cast<std::int32_t>(random() % 30));
  config.preemption_mode = static_cast<PreemptionMode>(random() % 3);
  config.enable_prefix_caching = random() % 4 != 0;
  config.block_size = 1 << (random() % 4);
  if (config.block_size == 1) config.num_blocks = *config.num_blocks * 4;
  const auto engine = fixture.make(config);
  if (!is_asynchronous || seed % 2 == 0) {
    engine->set_tenant_quota("small", *config.num_blocks / 2);
  }
  std::vector<RequestId> known;
  std::vector<std::vector<std::byte>> snapshots;
  const auto any = [&] { return known[random() % known.size()]; };
  for (int i = 0; i < num_operations; ++i) {
    RequestOptions options;
    options.priority = static_cast<std::int32_t>(random() % 3);
    if (random() % 3 == 0) options.tenant = "small";
    if (random() % 4 == 0) options.cache_salt = "salt";
    try {
      switch (known.empty() ? 0 : random() % 12) {
        case 0:
        case 1: {
          const SamplingParams params = make_params(random);
          options.hold = random() % 2 == 0;
          known.push_back(engine->add_request(make_prompt(random), params, options));
          break;
        }
        case 2:
          known.push_back(engine->fork(any(), static_cast<std::int32_t>(random() % 2), {},
                                       make_params(random), make_prompt(random), options));
          break;
        case 3: {
          const RequestId parent = any();
          const auto length = static_cast<std::int32_t>(engine->tokens(parent).size());
          const std::int32_t at = 1 + static_cast<std::int32_t>(random()) % length;
          known.push_back(engine->fork(parent, 0, at, make_params(random), {}, options));
          break;
        }
        case 4:
          engine->abort(any());
          break;
        case 5:
          engine->finish_sequence(any(), static_cast<std::int32_t>(random() % 3));
          break;
        case 6:
          engine->hold(any());
          break;
        case 7:
          engine->release(any());
          break;
        case 8:
          snapshots.push_back(random() % 2 == 0 ? engine->save(any()) : engine->save(any(), 0));
          break;
        case 9:
          if (snapshots.empty()) break;
          if (random() % 2 == 0) {
            known.push_back(engine->load(snapshots[random() % snapshots.size()], nullptr, options));
          } else {
            const SamplingParams params = make_params(random);
            known.push_back(engine->load(snapshots[random() % snapshots.size()], &params, options));
          }
          break;
        default:
          engine->step();
      }
    } catch (const InvalidArgument&) {
      // Random arguments need not fit; nothing may have changed then.
    }
    const std::vector<std::string> report = engine->verify();
    for (const std::string& line : report) std::fprintf(stderr, "%s\n", line.c_str());
    CHECK(report.empty());
  }
  Outputs outputs;
  for (RequestId id : known) {
    if (random() % 2 == 0) engine->abort(id);
  }
  int num_steps = 0;
  while (engine->has_unfinished()) {
    engine->step();
    CHECK(++num_steps < 100000);
    for (RequestId id : known) engine->release(id);
    CHECK(engine->verify().empty());
  }
  for (RequestId id : known) engine->release(id);
  CHECK(engine->stats().used_blocks == 0);
  CHECK(engine->stats().used_host_blocks == 0);
  CHECK(engine->stats().num_held == 0);
}

}  // namespace

int main(int argc, char** argv) {
  const int num_seeds = argc > 1 ? std::atoi(argv[1]) : 12;
  test_memory_comes_back();
  for (PreemptionMode mode :
       {PreemptionMode::kRecompute, PreemptionMode::kSwap, PreemptionMode::kAuto}) {
    test_pressure_changes_nothing(mode, false);
    test_pressure_changes_nothing(mode, true);
  }
  for (const bool is_asynchronous : {false, true}) {
    test_failed_steps_change_nothing(is_asynchronous);
    for (int seed = 0; seed < num_seeds; ++seed) {
      test_random_operations(seed, 400, is_asynchronous);
    }
    test_random_operations(613, 400, is_asynchronous);  // ends a held one that is being rebuilt
  }
  test_looking_ahead_changes_nothing();
}
