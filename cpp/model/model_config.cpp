#include "pagedcore/model_config.h"

#include <cmath>
#include <limits>

#include "cpp/model/families.h"
#include "pagedcore/error.h"

namespace pagedcore {
namespace {

void require_positive(const char* field, std::int64_t value) {
  PAGEDCORE_REQUIRE(value >= 1 && value <= std::numeric_limits<std::int32_t>::max(), field,
                    " must be from 1 to 2147483647, got ", value);
}

void require_positive(const char* field, float value) {
  PAGEDCORE_REQUIRE(std::isfinite(value) && value > 0, field, " must be a positive number, got ",
                    value);
}

void require_not_negative(const char* field, float value) {
  PAGEDCORE_REQUIRE(std::isfinite(value) && value >= 0, field,
                    " must be a number that is not negative, got ", value);
}

void validate_sizes(const ModelConfig& config) {
  require_positive("vocab_size", config.vocab_size);
  require_positive("hidden_size", config.hidden_size);
  require_positive("intermediate_size", config.intermediate_size);
  require_positive("num_layers", config.num_layers);
  require_positive("num_heads", config.num_heads);
  require_positive("num_kv_heads", config.num_kv_heads);
  PAGEDCORE_REQUIRE(config.head_dim >= 8 && config.head_dim <= 512 && config.head_dim % 8 == 0,
                    "head_dim must be a multiple of 8 from 8 to 512, got ", config.head_dim);
  require_positive("max_position_embeddings", config.max_position_embeddings);
  require_positive("embedding_size", config.embedding_size);
  PAGEDCORE_REQUIRE(config.num_heads % config.num_kv_heads == 0,
                    "num_heads must be a multiple of num_kv_heads, got ", config.num_heads, " and ",
                    config.num_kv_heads);
}

void validate_rope(const ModelConfig& config) {
  const std::int64_t rotary_dim = config.rotary_dim == 0 ? config.head_dim : config.rotary_dim;
  PAGEDCORE_REQUIRE(rotary_dim >= 2 && rotary_dim % 2 == 0 && rotary_dim <= config.head_dim,
                    "rotary_dim must be even and from 2 to head_dim (", config.head_dim, "), got ",
                    rotary_dim);
  require_positive("rope_theta", config.rope_theta);
  const RopeScaling& scaling = config.rope_scaling;
  if (scaling.kind == RopeScalingKind::kNone) return;
  require_positive("rope_scaling.factor", scaling.factor);
  if (scaling.kind == RopeScalingKind::kLinear) return;
  require_positive("rope_scaling.original_max_position_embeddings",
                   std::int64_t{scaling.original_max_position_embeddings});
  switch (scaling.kind) {
    case RopeScalingKind::kDynamic:
      PAGEDCORE_REQUIRE(rotary_dim > 2, "rotary_dim must exceed 2 for dynamic rope scaling, got ",
                        rotary_dim);
      break;
    case RopeScalingKind::kYarn:
      PAGEDCORE_REQUIRE(config.rope_theta > 1, "rope_theta must exceed 1 for yarn, got ",
                        config.rope_theta);
      require_positive("rope_scaling.beta_fast", scaling.beta_fast);
      require_positive("rope_scaling.beta_slow", scaling.beta_slow);
      require_not_negative("rope_scaling.attention_factor", scaling.attention_factor);
      require_not_negative("rope_scaling.mscale", scaling.mscale);
      require_not_negative("rope_scaling.mscale_all_dim", scaling.mscale_all_dim);
      break;
    case RopeScalingKind::kLlama3:
      require_positive("rope_scaling.low_freq_factor", scaling.low_freq_factor);
      PAGEDCORE_REQUIRE(scaling.high_freq_factor > scaling.low_freq_factor,
                        "rope_scaling.high_freq_factor must exceed low_freq_factor (",
                        scaling.low_freq_factor, "), got ", scaling.high_freq_factor);
      break;
    default:
      break;
  }
}

void validate_family(const ModelConfig& config) {
  const TensorNames& names = family(config.architecture);
  const auto require_tensor = [&](bool wanted, const char* field, std::string_view name) {
    PAGEDCORE_REQUIRE(!wanted || !name.empty(), field, " is set, but ", config.architecture,
                      " has no tensor for it");
  };
  require_tensor(config.qk_norm, "qk_norm", names.q_norm);
  require_tensor(config.gated_mlp, "gated_mlp", names.gate);
  require_tensor(config.position == PositionKind::kLearned, "position = learned",
                 names.position_embedding);
  require_tensor(config.embedding_size != config.hidden_size, "embedding_size != hidden_size",
                 names.project_in);
}

}  // namespace

void ModelConfig::validate() const {
  validate_family(*this);
  validate_sizes(*this);
  PAGEDCORE_REQUIRE(norm != NormKind::kNone, "norm must be rms or layer, got none");
  require_positive("norm_epsilon", norm_epsilon);
  if (position == PositionKind::kRope) {
    validate_rope(*this);
  } else {
    PAGEDCORE_REQUIRE(position_offset >= 0, "position_offset must not be negative, got ",
                      position_offset);
  }
  PAGEDCORE_REQUIRE(sliding_window >= 0, "sliding_window must not be negative, got ",
                    sliding_window);
  PAGEDCORE_REQUIRE(
      layer_uses_window.empty() || std::ssize(layer_uses_window) == num_layers,
      "layer_uses_window must be empty or have one entry for each of the num_layers = ", num_layers,
      " layers, got ", layer_uses_window.size(), " entries");
  require_not_negative("attention_softcap", attention_softcap);
  require_not_negative("attention_scale", attention_scale);
}

}  // namespace pagedcore
