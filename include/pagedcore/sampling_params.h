#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "pagedcore/export.h"
#include "pagedcore/types.h"

namespace pagedcore {

// When beam search ends. As transformers' early_stopping: True, False and "never".
enum class EarlyStopping : std::int8_t {
  kTrue,   // as soon as beam_width hypotheses are complete
  kFalse,  // when no open beam, at its present length, scores above the worst of them
  kNever,  // when no open beam can ever score above it
};

// How a request's tokens are chosen and when it stops. Stop strings are the caller's: the library
// sees tokens only.
struct PAGEDCORE_API SamplingParams {
  std::int32_t n = 1;        // sequences to return
  std::int32_t best_of = 0;  // sequences to sample, the n most likely are returned; 0: n
  float temperature = 1.0f;  // 0: greedy
  float top_p = 1.0f;
  std::int32_t top_k = 0;  // 0: off
  float min_p = 0.0f;
  std::optional<std::int64_t> seed;  // none: drawn from the engine's own seed and the request id
  std::optional<std::int32_t> max_tokens = 16;  // none: until max_model_len
  std::int32_t min_tokens = 0;
  std::vector<TokenId> stop_token_ids;
  bool ignore_eos = false;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::vector<std::pair<TokenId, float>> logit_bias;
  std::vector<TokenId> allowed_token_ids;  // empty: all
  std::vector<TokenId> bad_token_ids;
  std::int32_t logprobs = -1;         // top logprobs a token; -1: none, 0: the taken token's only
  std::int32_t prompt_logprobs = -1;  // the same for the prompt's tokens

  // > 0: beam search with so many beams, of which the n best are returned; greedy otherwise, the
  // options of drawing are off.
  std::int32_t beam_width = 0;
  float length_penalty = 1.0f;  // score = sum of logprobs / output length ^ length_penalty
  EarlyStopping early_stopping = EarlyStopping::kFalse;

  // Throws InvalidArgument naming the field, its value and the rule.
  void validate(std::int64_t vocab_size) const;
};

}  // namespace pagedcore
