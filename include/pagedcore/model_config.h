#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pagedcore/export.h"
#include "pagedcore/ops.h"

namespace pagedcore {

enum class PositionKind : std::int8_t { kRope, kLearned };
enum class RopeScalingKind : std::int8_t { kNone, kLinear, kDynamic, kYarn, kLlama3 };

// Field names and meanings are those of Hugging Face's rope_scaling; the tables are equal to those
// that transformers computes. The exception is kDynamic, whose base grows there with the longest
// sequence of the batch: here position p >= original_max_position_embeddings turns by the base of a
// sequence of p + 1 tokens. That is transformers' result where a sequence grows token by token, it
// is the same in any batch and chunking, and below the original length nothing changes.
struct RopeScaling {
  RopeScalingKind kind = RopeScalingKind::kNone;
  float factor = 1.0f;
  float low_freq_factor = 1.0f;
  float high_freq_factor = 4.0f;
  std::int32_t original_max_position_embeddings = 0;
  float beta_fast = 32.0f;
  float beta_slow = 1.0f;
  float attention_factor = 0.0f;  // 0: derived from factor
  float mscale = 0.0f;
  float mscale_all_dim = 0.0f;
  bool truncate = true;
};

// Everything that one forward pass needs to know of a model. A family of models is a table of
// tensor names and these flags, not a forward pass of its own.
struct PAGEDCORE_API ModelConfig {
  std::string architecture;  // "LlamaForCausalLM": selects the table of tensor names

  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t max_position_embeddings = 0;
  std::int64_t embedding_size = 0;  // of a token; differs from hidden_size in OPT-350M

  NormKind norm = NormKind::kRms;
  float norm_epsilon = 1e-5f;
  bool norm_affine = true;  // norms have a weight (kLayer: and a bias)
  bool norm_after = false;  // OPT-350M: norm after each residual add instead of before
  bool final_norm = true;
  bool qk_norm = false;

  PositionKind position = PositionKind::kRope;
  std::int64_t position_offset = 0;  // learned positions start at this row (OPT: 2)
  float rope_theta = 10000.0f;
  std::int64_t rotary_dim = 0;  // 0: head_dim
  RopeScaling rope_scaling;

  Activation activation = Activation::kSilu;
  bool gated_mlp = true;
  bool qkv_bias = false;
  bool output_bias = false;
  bool mlp_bias = false;
  bool tied_embeddings = false;

  std::int32_t sliding_window = 0;      // 0: none
  std::vector<bool> layer_uses_window;  // empty: every layer does
  float attention_softcap = 0.0f;
  float attention_scale = 0.0f;           // 0: 1 / sqrt(head_dim)
  bool attention_scale_by_layer = false;  // layer i (from 0) divides the scale by i + 1

  // Throws InvalidArgument naming the field, its value and the rule.
  void validate() const;
};

// The architectures that Decoder knows, in alphabetical order.
PAGEDCORE_API std::vector<std::string> supported_architectures();

}  // namespace pagedcore
