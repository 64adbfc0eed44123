#pragma once

#include <pagedcore/model_config.h>
#include <pagedcore/tensor.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

inline pagedcore::ModelConfig small_llama() {
  pagedcore::ModelConfig config;
  config.architecture = "LlamaForCausalLM";
  config.vocab_size = 97;
  config.hidden_size = 64;
  config.embedding_size = 64;
  config.intermediate_size = 128;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.max_position_embeddings = 256;
  config.tied_embeddings = true;
  return config;
}

// Owns float32 tensors with small pseudo-random values.
class RandomTensors {
 public:
  void add(const std::string& name, std::int64_t rows, std::int64_t columns, float offset = 0.0f) {
    std::vector<float>& data = data_[name];
    data.resize(rows * columns);
    for (float& value : data) value = offset + 0.1f * next();
    pagedcore::TensorView view;
    view.data = data.data();
    view.rank = rows == 1 ? 1 : 2;
    view.shape = {rows, columns, 0, 0};
    if (rows == 1) view.shape = {columns, 0, 0, 0};
    views_[name] = view;
  }
  const auto& views() const { return views_; }

 private:
  float next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(state_ >> 40) / (1 << 23) - 1.0f;
  }

  std::uint64_t state_ = 1;
  std::map<std::string, std::vector<float>> data_;
  std::map<std::string, pagedcore::TensorView, std::less<>> views_;
};

inline pagedcore::Weights random_weights(const pagedcore::ModelConfig& config) {
  const auto tensors = std::make_shared<RandomTensors>();
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t kv = config.num_kv_heads * config.head_dim;
  tensors->add("model.embed_tokens.weight", config.vocab_size, hidden);
  tensors->add("model.norm.weight", 1, hidden, 1.0f);
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    tensors->add(layer + "input_layernorm.weight", 1, hidden, 1.0f);
    tensors->add(layer + "post_attention_layernorm.weight", 1, hidden, 1.0f);
    tensors->add(layer + "self_attn.q_proj.weight", hidden, hidden);
    tensors->add(layer + "self_attn.k_proj.weight", kv, hidden);
    tensors->add(layer + "self_attn.v_proj.weight", kv, hidden);
    tensors->add(layer + "self_attn.o_proj.weight", hidden, hidden);
    tensors->add(layer + "mlp.gate_proj.weight", config.intermediate_size, hidden);
    tensors->add(layer + "mlp.up_proj.weight", config.intermediate_size, hidden);
    tensors->add(layer + "mlp.down_proj.weight", hidden, config.intermediate_size);
  }
  return {.tensors = tensors->views(), .keep_alive = tensors};
}
