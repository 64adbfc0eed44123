// An embedder's program: a small Llama of random weights made in memory, served by its own loop.

#include <pagedcore/backend.h>
#include <pagedcore/engine.h>
#include <pagedcore/error.h>

#include <cstdio>
#include <map>
#include <vector>

#include "random_llama.h"

int main() {
  const pagedcore::ModelConfig model = small_llama();
  pagedcore::EngineConfig config;
  config.num_blocks = 64;
  pagedcore::Engine engine(model, random_weights(model), pagedcore::make_cpu_backend(), config);

  pagedcore::SamplingParams params;
  params.temperature = 0.0f;
  params.max_tokens = 8;
  std::map<pagedcore::RequestId, std::vector<pagedcore::TokenId>> outputs;
  const std::vector<std::vector<pagedcore::TokenId>> prompts = {{1, 2, 3}, {4, 5, 6, 7, 8}};
  for (const auto& prompt : prompts) outputs[engine.add_request(prompt, params)] = {};

  while (engine.has_unfinished()) {
    for (const pagedcore::SequenceUpdate& update : engine.step()) {
      auto& tokens = outputs[update.request_id];
      tokens.insert(tokens.end(), update.new_tokens.begin(), update.new_tokens.end());
    }
  }

  for (const auto& [id, tokens] : outputs) {
    std::printf("request %lld:", static_cast<long long>(id));
    for (const pagedcore::TokenId token : tokens) std::printf(" %d", token);
    std::printf("\n");
  }
  try {
    engine.add_request({}, params);
  } catch (const pagedcore::InvalidArgument& error) {
    std::printf("refused: %s\n", error.what());
  }
  return engine.verify().empty() ? 0 : 1;
}
