#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "pagedcore/export.h"
#include "pagedcore/types.h"

namespace pagedcore {

enum class FinishReason : std::int8_t {
  kNone,
  kStop,      // an end-of-sequence or stop token, or finish_sequence()
  kLength,    // max_tokens or max_model_len
  kCapacity,  // the request alone needs more KV blocks than there are
};

// "stop", "length", "capacity"; empty for kNone.
PAGEDCORE_API std::string_view finish_reason_name(FinishReason reason);

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0.0f;   // of the model's own distribution
  std::int32_t rank = 0;  // 1: most likely
};

// How a request is queued, beside what is asked.
struct RequestOptions {
  std::int32_t priority = 0;  // lower runs first
  std::string tenant;         // whose KV quota it counts against
  std::string cache_salt;     // requests share prefixes only with those of the same salt
  bool hold = false;          // keep its sequences' KV when it finishes, until release()
};

// Times are microseconds of a steady clock.
struct RequestMetrics {
  std::int64_t queue_us = 0;        // from add_request() to its first computed token
  std::int64_t first_token_us = 0;  // from add_request() to its first output token
  std::int64_t total_us = 0;        // from add_request() until now or its end
  std::int32_t num_prompt_tokens = 0;
  std::int32_t num_cached_tokens = 0;  // of the prompt, stored already: cached, forked or loaded
  std::int32_t num_preemptions = 0;
  std::int32_t num_recomputed_tokens = 0;  // computed again after preemption
  std::string_view last_preemption;        // why; a literal, empty if there was none
};

// What one step added to one sequence of a request. Spans and pointers are valid until the next
// call of the engine.
struct SequenceUpdate {
  RequestId request_id = 0;
  std::int32_t index = 0;  // of the sequence in its request; best first where they are ranked
  std::span<const TokenId> new_tokens;
  // Of each new token where asked for: the token's own first, then the most likely ones.
  std::span<const TokenLogprob> logprobs;  // [new_tokens, logprobs_per_token]
  std::int32_t logprobs_per_token = 0;     // 1 + SamplingParams::logprobs; 0: none
  // With a request's first update where asked for: of the prompt's tokens but the first.
  std::span<const TokenLogprob> prompt_logprobs;  // [prompt tokens - 1, prompt_logprobs_per_token]
  std::int32_t prompt_logprobs_per_token = 0;
  // Sum of the new and earlier tokens' logprobs where logprobs, best_of or beams ask for them; the
  // length-penalised score follows for beams.
  double cumulative_logprob = 0.0;
  double score = 0.0;
  FinishReason finish_reason = FinishReason::kNone;
  TokenId stop_token = -1;       // kStop by a token: which
  std::string_view explanation;  // kCapacity: the numbers
  const RequestMetrics* metrics = nullptr;
};

}  // namespace pagedcore
