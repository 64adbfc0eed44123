#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "pagedcore/backend.h"
#include "pagedcore/export.h"
#include "pagedcore/model_config.h"
#include "pagedcore/sampling_params.h"
#include "pagedcore/scheduler.h"
#include "pagedcore/tensor.h"

namespace pagedcore {

struct EngineConfig {
  std::int32_t block_size = 16;
  // The KV cache's size: one of the two, or neither for kDefaultKvCacheBytes.
  std::optional<std::int64_t> kv_cache_bytes;
  std::optional<std::int32_t> num_blocks;
  std::optional<DType> kv_dtype;  // none: the weights' dtype
  std::int32_t max_model_len = 0;  // 0: the model's max_position_embeddings
  std::int32_t max_num_seqs = 256;
  std::int32_t max_num_batched_tokens = 2048;
  bool enable_prefix_caching = true;
  std::int64_t swap_space_bytes = 0;
  PreemptionMode preemption_mode = PreemptionMode::kRecompute;
  std::int32_t max_waiting = 0;  // 0: unbounded
  std::vector<TokenId> eos_token_ids;
  std::int64_t seed = 0;
};

inline constexpr std::int64_t kDefaultKvCacheBytes = std::int64_t{1} << 30;

// Exact bytes, known before anything is allocated.
struct MemoryPlan {
  std::int64_t weights_bytes = 0;  // of the checkpoint: mapped, not allocated, on a host backend
  std::int64_t block_bytes = 0;    // one block over all layers
  std::int64_t num_blocks = 0;
  std::int64_t kv_cache_bytes = 0;  // block_bytes * num_blocks
  std::int64_t workspace_bytes = 0;
  std::int64_t swap_bytes = 0;
  std::int64_t total_bytes = 0;  // what the engine allocates
};

enum class FinishReason : std::int8_t { kNone, kStop, kLength, kAbort, kCapacity };

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0.0f;
  std::int32_t rank = 0;  // 1: most likely
};

// What one step added to one sequence of a request.
struct SequenceUpdate {
  RequestId request_id = 0;
  std::int32_t index = 0;  // of the sequence in its request
  std::span<const TokenId> new_tokens;
  std::span<const std::vector<TokenLogprob>> logprobs;  // one a new token where asked for
  FinishReason finish_reason = FinishReason::kNone;
  TokenId stop_token = -1;  // kStop by a token: which
};

struct RequestOptions {
  std::int32_t priority = 0;  // lower runs first
  std::string tenant;
  std::string cache_salt;
};

// Serves requests over one model on one backend. One thread owns an engine. See ARCHITECTURE in
// README.md for the parts that it joins.
class PAGEDCORE_API Engine {
 public:
  Engine(const ModelConfig& model, Weights weights, std::unique_ptr<Backend> backend,
         const EngineConfig& config);
  ~Engine();

  // Queues a request. Throws InvalidArgument (naming argument, value and rule) or QueueFull, and
  // changes nothing then.
  RequestId add_request(std::span<const TokenId> prompt, const SamplingParams& params,
                        const RequestOptions& options = {});
  // One iteration: plan, move blocks, forward, sample, commit. The updates are valid until the
  // next call.
  std::span<const SequenceUpdate> step();
  // Ends a request or one of its sequences (the caller saw a stop string). Unknown ids are ignored.
  void abort(RequestId request_id);
  void finish_sequence(RequestId request_id, std::int32_t index);

  bool has_unfinished() const;
  // A complete consistency report: one line per violation, empty when all is well.
  std::vector<std::string> verify() const;

  static MemoryPlan plan_memory(const ModelConfig& model, const Weights& weights, Backend& backend,
                                const EngineConfig& config);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pagedcore
