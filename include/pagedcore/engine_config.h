#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "pagedcore/dtype.h"
#include "pagedcore/export.h"
#include "pagedcore/scheduler.h"
#include "pagedcore/types.h"

namespace pagedcore {

inline constexpr std::int64_t kDefaultKvCacheBytes = std::int64_t{1} << 30;

struct PAGEDCORE_API EngineConfig {
  std::int32_t block_size = 16;  // tokens; a power of two from 1 to 256
  // The KV cache's size: one of the two, or neither for kDefaultKvCacheBytes.
  std::optional<std::int64_t> kv_cache_bytes;
  std::optional<std::int32_t> num_blocks;
  std::optional<DType> kv_dtype;   // none: the weights' dtype; int8 on the CPU only
  std::int32_t max_model_len = 0;  // 0: the model's max_position_embeddings
  std::int32_t max_num_seqs = 256;
  std::int32_t max_num_batched_tokens = 2048;
  bool enable_prefix_caching = true;
  std::int64_t swap_space_bytes = 0;
  PreemptionMode preemption_mode = PreemptionMode::kRecompute;
  std::int32_t max_waiting = 0;  // 0: unbounded
  std::vector<TokenId> eos_token_ids;
  std::int64_t seed = 0;  // of requests that bring none

  // Throws InvalidArgument naming the field, its value and the rule.
  void validate() const;
};

// Exact bytes, known before anything is allocated.
struct MemoryPlan {
  // Of all tensors where they lie, mapped or quantised: not allocated on a host backend.
  std::int64_t weights_bytes = 0;
  std::int64_t block_bytes = 0;  // one block over all layers
  std::int64_t num_blocks = 0;
  std::int64_t kv_cache_bytes = 0;   // block_bytes * num_blocks
  std::int64_t workspace_bytes = 0;  // of forward pass, sampling and the backend itself
  std::int64_t num_host_blocks = 0;
  std::int64_t swap_bytes = 0;   // block_bytes * num_host_blocks, in host memory
  std::int64_t total_bytes = 0;  // kv_cache_bytes + workspace_bytes + swap_bytes
};

}  // namespace pagedcore
