#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "pagedcore/model_config.h"
#include "pagedcore/ops.h"
#include "pagedcore/tensor.h"

namespace pagedcore {

// The matrices that one linear op reads, as LinearParams takes them.
struct Matrices {
  std::array<LinearWeight, 3> weights;
  int num_weights = 0;  // 0: the model has none here
  std::int64_t in_features = 0;
  const std::int32_t* x_order = nullptr;  // [in_features]; as in LinearParams
};

struct NormWeights {
  const void* weight = nullptr;  // [hidden_size]; null: ones
  const void* bias = nullptr;    // [hidden_size]
  DType dtype = DType::kFloat32;
};

struct LayerWeights {
  NormWeights attention_norm;
  Matrices qkv;
  NormWeights q_norm;  // [head_dim]
  NormWeights k_norm;
  Matrices attention_out;
  NormWeights mlp_norm;
  Matrices up;  // gate and up where the MLP is gated
  Matrices down;
};

// A checkpoint's tensors, each at its place in the forward pass. Borrows their memory.
struct ModelWeights {
  TensorView token_embedding;     // [vocab_size, embedding_size]
  TensorView position_embedding;  // [position_offset + max_position_embeddings, hidden_size]
  Matrices project_in;
  Matrices project_out;
  NormWeights final_norm;
  Matrices lm_head;
  std::vector<LayerWeights> layers;

  // Of every matrix but the embeddings', lm_head's and quantised ones; where all of these are
  // quantised, of the token embedding. The KV cache and what flows between ops follow it.
  DType dtype = DType::kFloat32;
  std::vector<std::string> used;      // names of all tensors above, those of one op in a row
  std::vector<std::string> matrices;  // of these, what linear reads: the layers', lm_head's, ...
  bool is_quantized = false;          // some matrix is
};

// Finds and checks every tensor that `config` calls for. Throws InvalidArgument naming the tensor,
// what it is and what it should be.
ModelWeights bind_weights(const ModelConfig& config, const Weights& weights);

}  // namespace pagedcore
