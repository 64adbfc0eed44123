#pragma once

#include <cstdint>

#include "cpp/model/model_weights.h"
#include "pagedcore/backend.h"
#include "pagedcore/decoder.h"
#include "pagedcore/model_config.h"

namespace pagedcore {

// Where in the workspace each value of a step lies: offsets in bytes. Values that never live at the
// same time share a place.
struct WorkspaceLayout {
  ActivationDTypes dtypes;
  DType head_operand = DType::kFloat32;  // what lm_head reads

  std::int64_t residual = 0;   // [max_tokens, hidden_size]
  std::int64_t operand = 0;    // what a layer's linear reads: normed residual
  std::int64_t squares = 0;    // of a split norm
  std::int64_t query = 0;      // [max_tokens, num_heads * head_dim]; rows on their way
  std::int64_t wide = 0;       // qkv; attention's output; then [max_tokens, intermediate_size]
  std::int64_t last = 0;       // [max_logit_rows, hidden_size] after the final norm
  std::int64_t projected = 0;  // [max_logit_rows, embedding_size] after project_out
  std::int64_t logits = 0;     // [max_logit_rows, vocab_size] float32
  std::int64_t bytes = 0;
};

WorkspaceLayout lay_out_workspace(const ModelConfig& config, const ModelWeights& model,
                                  const Backend& backend, const DecoderLimits& limits);

}  // namespace pagedcore
