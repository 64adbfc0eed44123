#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "pagedcore/model_config.h"
#include "pagedcore/tensor.h"

namespace pagedcore::test {

struct TinyModelShape {
  std::int64_t vocab_size = 61;
  std::int64_t hidden_size = 16;
  std::int64_t num_layers = 2;
  std::int64_t num_heads = 2;
  std::int64_t num_kv_heads = 1;
  std::int64_t head_dim = 8;
  std::int64_t max_positions = 4096;
};

// A Llama with random weights that its Weights keep alive.
inline std::pair<ModelConfig, Weights> make_tiny_llama(const TinyModelShape& shape = {}) {
  ModelConfig config;
  config.architecture = "LlamaForCausalLM";
  config.vocab_size = shape.vocab_size;
  config.hidden_size = config.embedding_size = shape.hidden_size;
  config.intermediate_size = 2 * shape.hidden_size;
  config.num_layers = shape.num_layers;
  config.num_heads = shape.num_heads;
  config.num_kv_heads = shape.num_kv_heads;
  config.head_dim = shape.head_dim;
  config.max_position_embeddings = shape.max_positions;

  auto storage = std::make_shared<std::vector<std::unique_ptr<float[]>>>();
  Weights weights;
  weights.keep_alive = storage;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto add = [&](const std::string& name, std::int64_t rows, std::int64_t columns = 0) {
    const std::int64_t count = rows * std::max<std::int64_t>(columns, 1);
    storage->push_back(std::make_unique<float[]>(count));
    float* data = storage->back().get();
    const float scale = columns == 0 ? 0.1f : 2.0f / std::sqrt(static_cast<float>(columns));
    for (std::int64_t i = 0; i < count; ++i) data[i] = (columns == 0) + scale * normal(random);
    weights.tensors[name] = {data, DType::kFloat32, columns == 0 ? 1 : 2, {rows, columns, 0, 0}};
  };
  const std::int64_t hidden = shape.hidden_size;
  add("model.embed_tokens.weight", shape.vocab_size, hidden);
  add("model.norm.weight", hidden);
  add("lm_head.weight", shape.vocab_size, hidden);
  for (std::int64_t i = 0; i < shape.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    add(layer + "input_layernorm.weight", hidden);
    add(layer + "self_attn.q_proj.weight", shape.num_heads * shape.head_dim, hidden);
    add(layer + "self_attn.k_proj.weight", shape.num_kv_heads * shape.head_dim, hidden);
    add(layer + "self_attn.v_proj.weight", shape.num_kv_heads * shape.head_dim, hidden);
    add(layer + "self_attn.o_proj.weight", hidden, shape.num_heads * shape.head_dim);
    add(layer + "post_attention_layernorm.weight", hidden);
    add(layer + "mlp.gate_proj.weight", 2 * hidden, hidden);
    add(layer + "mlp.up_proj.weight", 2 * hidden, hidden);
    add(layer + "mlp.down_proj.weight", hidden, 2 * hidden);
  }
  return {config, weights};
}

}  // namespace pagedcore::test
