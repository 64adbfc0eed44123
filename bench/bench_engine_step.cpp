// Host time of a whole engine step: plan, batch, commit, tokens, updates; forward pass, sampling
// kernel and block moves excluded. Steady decode of --seqs sequences over a model so small that
// it hardly touches the caches. Allowed are 20 us at the median and 50 us at p99 for 256 sequences,
// and in proportion for others; text for people on stderr, a JSON line on stdout. Instructions:
//   valgrind --tool=callgrind --collect-atstart=no --toggle-collect='pagedcore::Engine::step()' ...
// for two numbers of steps; the difference, less what is in Impl::compute(), is that of steady
// steps. A step computes --batched_tokens of the prompts: with 2,048 their ends are spread, and so
// are the steps in which blocks are taken; where one step computes all, all take them together.
// With --mean_output sequences end at random after 1 to 2 * mean_output tokens, and new ones begin.
//   bench_engine_step [--seqs=256] [--context=512] [--steps=400] [--logprobs=-1]
//                     [--batched_tokens=2048] [--mean_output=0]
#include <cstdio>
#include <random>
#include <span>
#include <vector>

#include "bench/bench.h"
#include "pagedcore/engine.h"
#include "tests/support/tiny_model.h"

using namespace pagedcore;

int main(int argc, char** argv) {
  const bench::Arguments arguments(argc, argv);
  const int num_seqs = arguments.number("seqs", 256);
  const int context = arguments.number("context", 512);
  const int num_steps = arguments.number("steps", 400);
  const int mean_output = arguments.number("mean_output", 0);

  auto [model, weights] =
      test::make_tiny_llama({.hidden_size = 8, .num_layers = 1, .num_heads = 1});
  EngineConfig config;
  config.max_num_seqs = num_seqs;
  config.max_num_batched_tokens = arguments.number("batched_tokens", 2048);
  config.max_model_len = context + num_steps + 64;
  config.num_blocks = num_seqs * (config.max_model_len / config.block_size + 2);
  config.enable_prefix_caching = arguments.number("prefix_caching", 1) != 0;
  Engine engine(model, weights, make_cpu_backend({1, ""}), config);

  SamplingParams params;
  params.temperature = 1.0f;
  params.seed = 1;
  params.max_tokens = num_steps + 32;
  params.ignore_eos = true;
  params.logprobs = arguments.number("logprobs", -1);
  std::vector<TokenId> prompt(context);
  std::minstd_rand random(1);
  int num_requests = 0;
  const auto add_request = [&] {
    const int i = num_requests++;
    for (int j = 0; j < context; ++j) prompt[j] = (i * 31 + j * 7 + i * j) % 61;
    if (mean_output > 0) params.max_tokens = 1 + static_cast<int>(random() % (2 * mean_output));
    engine.add_request(prompt, params);
  };
  const auto replace_ended = [&](std::span<const SequenceUpdate> updates) {
    const auto has_ended = [](const SequenceUpdate& update) {
      return update.finish_reason != FinishReason::kNone;
    };
    for (auto left = std::ranges::count_if(updates, has_ended); left > 0; --left) add_request();
  };
  while (num_requests < num_seqs) add_request();
  for (std::size_t num_updates = 0; num_updates < static_cast<std::size_t>(num_seqs);) {
    const auto updates = engine.step();
    num_updates = updates.size();
    replace_ended(updates);
  }

  std::vector<double> host_us;
  std::vector<double> growing_us;
  std::vector<double> device_us;
  std::int32_t used_blocks = engine.stats().used_blocks;
  for (int i = 0; i < num_steps; ++i) {
    replace_ended(engine.step());
    const Stats stats = engine.stats();
    host_us.push_back(stats.step_host_us);
    device_us.push_back(stats.step_device_us);
    if (stats.used_blocks > used_blocks) growing_us.push_back(stats.step_host_us);
    used_blocks = stats.used_blocks;
  }
  std::sort(host_us.begin(), host_us.end());
  const double median = host_us[num_steps / 2];
  const double p99 = host_us[num_steps * 99 / 100];
  const double growing_median = growing_us.empty() ? 0.0 : bench::median(growing_us);
  const double median_allowed = 20.0 * num_seqs / 256;
  const double p99_allowed = 50.0 * num_seqs / 256;
  std::fprintf(
      stderr,
      "%d sequences: median %.1f us (%.0f %% of %g), p99 %.1f us (%.0f %% of %g), %zu steps "
      "in which blocks are taken %.1f us\n",
      num_seqs, median, 100 * median / median_allowed, median_allowed, p99, 100 * p99 / p99_allowed,
      p99_allowed, growing_us.size(), growing_median);
  std::printf(
      "{\"bench\": \"engine_step\", \"commit\": \"%s\", \"seqs\": %d, \"context\": %d, "
      "\"logprobs\": %d, \"mean_output\": %d, \"steps\": %d, \"host_us_median\": %.2f, "
      "\"host_us_p99\": %.2f, "
      "\"host_us_min\": %.2f, \"median_share_of_target\": %.3f, \"p99_share_of_target\": %.3f, "
      "\"growing_us_median\": %.2f, \"forward_and_sampling_us_median\": %.1f}\n",
      bench::commit().c_str(), num_seqs, context, params.logprobs, mean_output, num_steps, median,
      p99, host_us[0], median / median_allowed, p99 / p99_allowed, growing_median,
      bench::median(device_us));
}
