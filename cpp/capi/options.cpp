#include "cpp/capi/options.h"

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>

#include "pagedcore/error.h"

namespace pagedcore::capi {
namespace {

// f(name, field) for each field that a C caller may set.
template <typename F>
void visit(ModelConfig& c, const F& f) {
  f("architecture", c.architecture);
  f("vocab_size", c.vocab_size);
  f("hidden_size", c.hidden_size);
  f("intermediate_size", c.intermediate_size);
  f("num_layers", c.num_layers);
  f("num_heads", c.num_heads);
  f("num_kv_heads", c.num_kv_heads);
  f("head_dim", c.head_dim);
  f("max_position_embeddings", c.max_position_embeddings);
  f("embedding_size", c.embedding_size);
  f("norm", c.norm);
  f("norm_epsilon", c.norm_epsilon);
  f("norm_affine", c.norm_affine);
  f("norm_after", c.norm_after);
  f("final_norm", c.final_norm);
  f("qk_norm", c.qk_norm);
  f("position", c.position);
  f("position_offset", c.position_offset);
  f("rope_theta", c.rope_theta);
  f("rotary_dim", c.rotary_dim);
  f("rope_scaling.kind", c.rope_scaling.kind);
  f("rope_scaling.factor", c.rope_scaling.factor);
  f("rope_scaling.low_freq_factor", c.rope_scaling.low_freq_factor);
  f("rope_scaling.high_freq_factor", c.rope_scaling.high_freq_factor);
  f("rope_scaling.original_max_position_embeddings",
    c.rope_scaling.original_max_position_embeddings);
  f("activation", c.activation);
  f("gated_mlp", c.gated_mlp);
  f("qkv_bias", c.qkv_bias);
  f("output_bias", c.output_bias);
  f("mlp_bias", c.mlp_bias);
  f("tied_embeddings", c.tied_embeddings);
  f("sliding_window", c.sliding_window);
  f("attention_softcap", c.attention_softcap);
  f("attention_scale", c.attention_scale);
}

template <typename F>
void visit(EngineConfig& c, const F& f) {
  f("block_size", c.block_size);
  f("kv_cache_bytes", c.kv_cache_bytes);
  f("num_blocks", c.num_blocks);
  f("kv_dtype", c.kv_dtype);
  f("max_model_len", c.max_model_len);
  f("max_num_seqs", c.max_num_seqs);
  f("max_num_batched_tokens", c.max_num_batched_tokens);
  f("enable_prefix_caching", c.enable_prefix_caching);
  f("swap_space_bytes", c.swap_space_bytes);
  f("preemption_mode", c.preemption_mode);
  f("max_waiting", c.max_waiting);
  f("eos_token_ids", c.eos_token_ids);
  f("seed", c.seed);
}

template <typename F>
void visit(SamplingParams& p, const F& f) {
  f("n", p.n);
  f("best_of", p.best_of);
  f("temperature", p.temperature);
  f("top_p", p.top_p);
  f("top_k", p.top_k);
  f("min_p", p.min_p);
  f("seed", p.seed);
  f("max_tokens", p.max_tokens);
  f("min_tokens", p.min_tokens);
  f("stop_token_ids", p.stop_token_ids);
  f("ignore_eos", p.ignore_eos);
  f("repetition_penalty", p.repetition_penalty);
  f("presence_penalty", p.presence_penalty);
  f("frequency_penalty", p.frequency_penalty);
  f("allowed_token_ids", p.allowed_token_ids);
  f("bad_token_ids", p.bad_token_ids);
  f("beam_width", p.beam_width);
  f("length_penalty", p.length_penalty);
  f("early_stopping", p.early_stopping);
}

template <typename F>
void visit(RequestOptions& o, const F& f) {
  f("priority", o.priority);
  f("tenant", o.tenant);
  f("cache_salt", o.cache_salt);
}

template <typename T>
struct Unwrapped {
  using Type = T;
};
template <typename T>
struct Unwrapped<std::optional<T>> {
  using Type = T;
};

template <typename T>
void assign_number(std::string_view name, T& field, double value) {
  using Value = typename Unwrapped<T>::Type;
  if constexpr (std::is_floating_point_v<Value>) {
    field = static_cast<Value>(value);
  } else if constexpr (std::is_same_v<Value, bool>) {
    PAGEDCORE_REQUIRE(value == 0.0 || value == 1.0, name, " must be 0 or 1, got ", value);
    field = value == 1.0;
  } else if constexpr (std::is_enum_v<Value>) {
    PAGEDCORE_REQUIRE(value >= 0.0 && value <= 4.0 && value == std::floor(value), name,
                      " must be the position of a choice, got ", value);
    field = static_cast<Value>(static_cast<int>(value));
  } else {
    // Beyond 2^53 a double does not hold every whole number.
    const double limit = std::min(0x1p53, static_cast<double>(std::numeric_limits<Value>::max()));
    PAGEDCORE_REQUIRE(value == std::floor(value) && std::abs(value) <= limit, name,
                      " must be a whole number of at most ", limit, ", got ", value);
    field = static_cast<Value>(value);
  }
}

// Finds the field of that name for which f(name, field) says true.
template <typename F>
void find(pagedcore_options& options, std::string_view name, std::string_view kind, const F& f) {
  bool found = false;
  std::visit(
      [&](auto& value) {
        visit(value, [&](std::string_view field_name, auto& field) {
          if (field_name == name) found = f(field);
        });
      },
      options.value);
  PAGEDCORE_REQUIRE(found, "these options have no ", kind, " named '", name, "'");
}

template <typename T>
constexpr bool kIsNumber = std::is_arithmetic_v<typename Unwrapped<T>::Type> ||
                           std::is_enum_v<typename Unwrapped<T>::Type>;

}  // namespace

void set_number(pagedcore_options& options, std::string_view name, double value) {
  find(options, name, "number", [&]<typename T>(T& field) {
    if constexpr (kIsNumber<T> && !std::is_same_v<T, std::optional<DType>>) {
      assign_number(name, field, value);
      return true;
    }
    return false;
  });
}

void set_text(pagedcore_options& options, std::string_view name, std::string_view value) {
  find(options, name, "text", [&]<typename T>(T& field) {
    if constexpr (std::is_same_v<T, std::string>) {
      field = value;
      return true;
    } else if constexpr (std::is_same_v<T, std::optional<DType>>) {
      field = dtype_from_name(value);
      return true;
    }
    return false;
  });
}

std::vector<TokenId>& token_list(pagedcore_options& options, std::string_view name) {
  std::vector<TokenId>* list = nullptr;
  find(options, name, "token list", [&]<typename T>(T& field) {
    if constexpr (std::is_same_v<T, std::vector<TokenId>>) list = &field;
    return list != nullptr;
  });
  return *list;
}

}  // namespace pagedcore::capi
