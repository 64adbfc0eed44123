#include "pagedcore/engine_config.h"

#include <bit>

#include "pagedcore/error.h"

namespace pagedcore {

void EngineConfig::validate() const {
  PAGEDCORE_REQUIRE(block_size >= 1 && block_size <= 256 &&
                        std::has_single_bit(static_cast<std::uint32_t>(block_size)),
                    "block_size must be a power of two from 1 to 256, got ", block_size);
  PAGEDCORE_REQUIRE(!kv_cache_bytes || !num_blocks,
                    "only one of kv_cache_bytes and num_blocks may be given, got ",
                    kv_cache_bytes.value_or(0), " and ", num_blocks.value_or(0));
  PAGEDCORE_REQUIRE(!kv_cache_bytes || *kv_cache_bytes > 0, "kv_cache_bytes must be above 0, got ",
                    kv_cache_bytes.value_or(0));
  PAGEDCORE_REQUIRE(!num_blocks || *num_blocks >= 1, "num_blocks must be at least 1, got ",
                    num_blocks.value_or(0));
  PAGEDCORE_REQUIRE(!kv_dtype || *kv_dtype == DType::kFloat32 || *kv_dtype == DType::kFloat16 ||
                        *kv_dtype == DType::kBFloat16 || *kv_dtype == DType::kInt8,
                    "kv_dtype must be float32, float16, bfloat16 or int8, got ",
                    dtype_name(kv_dtype.value_or(DType::kFloat32)));
  PAGEDCORE_REQUIRE(max_model_len >= 0, "max_model_len must be 0 (the model's) or at least 1, got ",
                    max_model_len);
  PAGEDCORE_REQUIRE(max_num_seqs >= 1, "max_num_seqs must be at least 1, got ", max_num_seqs);
  PAGEDCORE_REQUIRE(max_num_batched_tokens >= 1, "max_num_batched_tokens must be at least 1, got ",
                    max_num_batched_tokens);
  PAGEDCORE_REQUIRE(swap_space_bytes >= 0, "swap_space_bytes must be at least 0, got ",
                    swap_space_bytes);
  PAGEDCORE_REQUIRE(preemption_mode != PreemptionMode::kSwap || swap_space_bytes > 0,
                    "swap_space_bytes must be above 0 with preemption_mode swap, got ",
                    swap_space_bytes);
  PAGEDCORE_REQUIRE(max_waiting >= 0, "max_waiting must be 0 (unbounded) or more, got ",
                    max_waiting);
  for (TokenId token : eos_token_ids) {
    PAGEDCORE_REQUIRE(token >= 0, "eos_token_ids must hold ids of at least 0, got ", token);
  }
}

}  // namespace pagedcore
