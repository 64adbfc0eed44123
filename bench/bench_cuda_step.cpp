// Whole decode steps of an engine on the CUDA backend: Llama shapes, random bf16 weights, greedy.
// A step plans, stages, replays its graph, samples and commits; the time is the wall clock's.
// Floor: bytes of the weights and of the context's K and V, over the measured bandwidth of a copy
// (which reads and writes). One JSON line a batch size.
// Usage: bench_cuda_step [1b|8b] [copy TB/s] [batch sizes...]

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "pagedcore/engine.h"

namespace {

using namespace pagedcore;
using Clock = std::chrono::steady_clock;

constexpr std::int32_t kContext = 512;
constexpr int kSteps = 48;  // timed; the context grows by as much

ModelConfig llama(const std::string& size) {
  ModelConfig c;
  c.architecture = "LlamaForCausalLM";
  c.vocab_size = 128256;
  c.head_dim = size == "1b" ? 64 : 128;
  c.hidden_size = size == "1b" ? 2048 : 4096;
  c.intermediate_size = size == "1b" ? 8192 : 14336;
  c.num_layers = size == "1b" ? 16 : 32;
  c.num_heads = 32;
  c.num_kv_heads = 8;
  c.max_position_embeddings = 131072;
  c.embedding_size = c.hidden_size;
  c.rope_theta = 500000.0f;
  c.tied_embeddings = size == "1b";
  return c;
}

// Every tensor lies in one buffer of random numbers: the device's copies are its own.
Weights random_weights(const ModelConfig& c) {
  const std::int64_t most = c.vocab_size * c.hidden_size;
  auto data = std::make_shared<std::vector<std::uint16_t>>(most);
  std::mt19937 random(1);
  for (std::uint16_t& x : *data) {
    // Bits of bf16 numbers of either sign, between 1/256 and 1/32.
    x = static_cast<std::uint16_t>((random() & 0x8000) | (0x3b80 + (random() & 0x1ff)));
  }
  Weights weights;
  const auto add = [&](const std::string& name, std::int64_t rows, std::int64_t cols) {
    TensorView view{.data = data->data(), .dtype = DType::kBFloat16, .rank = cols == 0 ? 1 : 2};
    view.shape[0] = rows;
    view.shape[1] = cols;
    weights.tensors.emplace(name, view);
  };
  const std::int64_t h = c.hidden_size, kv = c.num_kv_heads * c.head_dim;
  add("model.embed_tokens.weight", c.vocab_size, h);
  add("model.norm.weight", h, 0);
  if (!c.tied_embeddings) add("lm_head.weight", c.vocab_size, h);
  for (std::int64_t i = 0; i < c.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    add(layer + "input_layernorm.weight", h, 0);
    add(layer + "post_attention_layernorm.weight", h, 0);
    add(layer + "self_attn.q_proj.weight", c.num_heads * c.head_dim, h);
    add(layer + "self_attn.k_proj.weight", kv, h);
    add(layer + "self_attn.v_proj.weight", kv, h);
    add(layer + "self_attn.o_proj.weight", h, c.num_heads * c.head_dim);
    add(layer + "mlp.gate_proj.weight", c.intermediate_size, h);
    add(layer + "mlp.up_proj.weight", c.intermediate_size, h);
    add(layer + "mlp.down_proj.weight", h, c.intermediate_size);
  }
  weights.keep_alive = data;
  return weights;
}

double microseconds(Clock::duration d) {
  return std::chrono::duration<double, std::micro>(d).count();
}

void time_batch(Engine& engine, const std::string& size, std::int32_t batch, double copy_tb) {
  std::mt19937 random(batch);
  std::vector<TokenId> prompt(kContext);
  SamplingParams params;
  params.temperature = 0.0f;
  params.max_tokens = 100000;
  params.ignore_eos = true;
  std::vector<RequestId> ids;
  const Clock::time_point start = Clock::now();
  for (std::int32_t i = 0; i < batch; ++i) {
    for (TokenId& token : prompt) token = static_cast<TokenId>(random() % 128000);
    ids.push_back(engine.add_request(prompt, params));
  }
  // Until all decode, and then a few steps more that record the graph.
  std::int64_t prefill_steps = 0;
  while (static_cast<std::int32_t>(engine.step().size()) < batch) ++prefill_steps;
  const double prefill_us = microseconds(Clock::now() - start);
  for (int i = 0; i < 4; ++i) engine.step();
  std::vector<double> times, host;
  for (int i = 0; i < kSteps; ++i) {
    const Clock::time_point begin = Clock::now();
    engine.step();
    times.push_back(microseconds(Clock::now() - begin));
    host.push_back(engine.stats().step_host_us);
  }
  for (const RequestId id : ids) engine.abort(id);
  std::sort(times.begin(), times.end());
  std::sort(host.begin(), host.end());
  const double us = times[kSteps / 2];
  const ModelConfig& c = engine.model_config();
  const double kv = 2.0 * static_cast<double>(c.num_layers * c.num_kv_heads * c.head_dim) * 2;
  const double embedding = 2.0 * static_cast<double>(c.vocab_size * c.hidden_size);
  // The embedding table is read whole only as the head.
  const double weights = static_cast<double>(engine.memory_plan().weights_bytes) -
                         (c.tied_embeddings ? 0.0 : embedding);
  const double bytes = weights + batch * (kContext + kSteps / 2.0) * kv;
  std::printf(
      "{\"bench\": \"cuda_step\", \"model\": \"llama-%s\", \"batch\": %d, \"context\": %d, "
      "\"step_us\": %.1f, \"p10_us\": %.1f, \"p90_us\": %.1f, \"host_us\": %.1f, "
      "\"tokens_per_s\": %.0f, \"tb_per_s\": %.3f, \"share_of_copy\": %.3f, "
      "\"prefill_tokens_per_s\": %.0f}\n",
      size.c_str(), batch, kContext, us, times[kSteps / 10], times[kSteps * 9 / 10],
      host[kSteps / 2], batch * 1e6 / us, bytes / us / 1e6, bytes / us / 1e6 / copy_tb,
      batch * kContext * 1e6 / prefill_us);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string size = argc > 1 ? argv[1] : "1b";
  const double copy_tb = argc > 2 ? std::atof(argv[2]) : 4.3;
  std::vector<std::int32_t> batches;
  for (int i = 3; i < argc; ++i) batches.push_back(std::atoi(argv[i]));
  if (batches.empty()) batches = {1, 32, 256};

  const ModelConfig model = llama(size);
  EngineConfig config;
  config.max_model_len = 2048;
  config.max_num_seqs = 256;
  config.max_num_batched_tokens = 4096;
  config.num_blocks = 256 * (kContext + 128) / 16;
  config.enable_prefix_caching = false;
  try {
    Engine engine(model, random_weights(model), make_cuda_backend(), config);
    std::printf("{\"bench\": \"cuda_step\", \"backend\": \"%s\"}\n",
                engine.backend().description().c_str());
    for (const std::int32_t batch : batches) time_batch(engine, size, batch, copy_tb);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_cuda_step: %s\n", error.what());
    return 1;
  }
  return 0;
}
