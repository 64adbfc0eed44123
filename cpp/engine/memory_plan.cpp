#include "cpp/engine/memory_plan.h"

#include <algorithm>

#include "pagedcore/error.h"

namespace pagedcore {

EngineConfig complete_config(const ModelConfig& model, EngineConfig config) {
  config.validate();
  if (config.max_model_len == 0) {
    config.max_model_len = static_cast<std::int32_t>(model.max_position_embeddings);
  }
  PAGEDCORE_REQUIRE(config.max_model_len >= 2,
                    "max_model_len must be at least 2, a prompt token and an output token, got ",
                    config.max_model_len);
  return config;
}

DecoderLimits decoder_limits(const EngineConfig& config) {
  return {.max_tokens = config.max_num_batched_tokens,
          .max_logit_rows = std::min(config.max_num_seqs, config.max_num_batched_tokens),
          .max_positions = config.max_model_len};
}

StepLimits step_limits(const ModelConfig& model, const Weights& weights, const Backend& backend,
                       const EngineConfig& config) {
  return {.max_tokens = config.max_num_batched_tokens,
          .max_seqs = config.max_num_seqs,
          .table_stride = (config.max_model_len + config.block_size - 1) / config.block_size,
          .block_size = config.block_size,
          .num_heads = model.num_heads,
          .head_dim = model.head_dim,
          .gated_width = model.gated_mlp ? model.intermediate_size : 0,
          .operand = backend.activation_dtypes(Decoder::weight_dtype(model, weights)).operand};
}

KvCacheView kv_layout(const ModelConfig& model, const EngineConfig& config, DType weights) {
  KvCacheView view;
  view.dtype = config.kv_dtype.value_or(weights);
  view.num_layers = model.num_layers;
  view.num_kv_heads = model.num_kv_heads;
  view.block_size = config.block_size;
  view.head_dim = model.head_dim;
  return view;
}

namespace {

std::int64_t choose_num_blocks(const EngineConfig& config, std::int64_t block_bytes) {
  if (config.num_blocks) return *config.num_blocks;
  if (config.kv_cache_bytes) {
    PAGEDCORE_REQUIRE(*config.kv_cache_bytes >= block_bytes, "kv_cache_bytes must be at least ",
                      block_bytes, ", the bytes of one block of ", config.block_size,
                      " tokens, got ", *config.kv_cache_bytes);
    return *config.kv_cache_bytes / block_bytes;
  }
  const std::int64_t blocks_a_sequence =
      (config.max_model_len + config.block_size - 1) / config.block_size;
  return std::clamp<std::int64_t>(kDefaultKvCacheBytes / block_bytes, 1,
                                  blocks_a_sequence * config.max_num_seqs);
}

}  // namespace

MemoryPlan make_memory_plan(const ModelConfig& model, const Weights& weights,
                            const Backend& backend, const EngineConfig& config) {
  MemoryPlan plan;
  for (const auto& [name, tensor] : weights.tensors) plan.weights_bytes += tensor.num_bytes();
  // The decoder checks model and weights, so it comes first.
  plan.workspace_bytes = Decoder::workspace_bytes(model, weights, backend, decoder_limits(config)) +
                         backend.sample_workspace_bytes(model.vocab_size, config.max_num_seqs) +
                         backend.step_bytes(step_limits(model, weights, backend, config));
  const KvCacheView kv = kv_layout(model, config, Decoder::weight_dtype(model, weights));
  PAGEDCORE_REQUIRE(backend.is_host() || kv.dtype != DType::kInt8,
                    "kv_dtype int8 runs on the CPU only, got ", backend.description());
  plan.block_bytes = kv.block_bytes();
  plan.num_blocks = choose_num_blocks(config, plan.block_bytes);
  plan.kv_cache_bytes = plan.num_blocks * plan.block_bytes;
  PAGEDCORE_REQUIRE(plan.num_blocks <= std::int64_t{1} << 30,
                    "num_blocks must be at most 2^30, got ", plan.num_blocks);
  PAGEDCORE_REQUIRE(config.swap_space_bytes == 0 || config.swap_space_bytes >= plan.block_bytes,
                    "swap_space_bytes must be 0 or at least ", plan.block_bytes,
                    ", the bytes of one block, got ", config.swap_space_bytes);
  plan.num_host_blocks = config.swap_space_bytes / plan.block_bytes;
  plan.swap_bytes = plan.num_host_blocks * plan.block_bytes;
  plan.total_bytes = plan.kv_cache_bytes + plan.workspace_bytes + plan.swap_bytes;
  return plan;
}

}  // namespace pagedcore
