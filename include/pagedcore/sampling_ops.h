#pragma once

#include <cstdint>
#include <span>

#include "pagedcore/types.h"

namespace pagedcore {

// A token that a sequence has seen, for the penalties.
struct SeenToken {
  TokenId token = 0;
  std::int32_t output_count = 0;  // times generated; 0: only in the prompt
};

struct LogitBias {
  TokenId token = 0;
  float bias = 0.0f;
};

// How one row of logits becomes one token. Spans are host memory, borrowed for the call.
// In this order, each step on what the one before it left:
//   bias        added to the logits it names
//   allowed     every other token is out
//   banned      these tokens are out
//   penalties   repetition: a seen token's logit is divided by it where positive, else multiplied;
//               then frequency * output_count and, for generated tokens, presence are subtracted
//   temperature divides the logits; 0 takes the highest logit (ties: lowest id) and ends here
//   top_k       the k most likely (ties: lowest ids) stay
//   top_p       the fewest most likely tokens whose probability, of what top_k left, reaches top_p
//               stay: always at least one
//   min_p       tokens at least min_p times as likely as the most likely one stay
//   draw        by probability among what is left
// Where nothing is left (all banned), the result is the first of `allowed`, else token 0.
struct SampleRow {
  std::int32_t logit_row = 0;  // several samples may read one row
  float temperature = 0.0f;
  std::int32_t top_k = 0;  // 0: off
  float top_p = 1.0f;      // 1: off
  float min_p = 0.0f;      // 0: off
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::span<const SeenToken> seen;  // no token twice
  std::span<const LogitBias> bias;
  std::span<const TokenId> allowed;  // empty: all
  std::span<const TokenId> banned;   // bad tokens, and stop tokens until min_tokens is reached
  std::int64_t seed = 0;             // random numbers are a function of (seed, position) alone
  std::int64_t position = 0;
  // Most likely tokens to report, at most SampleOutputs::max_top; 0: logprob and rank of the taken
  // token only; -1: nothing, and the outputs of this sample but its token are unspecified.
  std::int32_t num_top = -1;
  TokenId given_token = -1;  // >= 0: take this token instead of drawing (prompt logprobs)
};

// Logprobs are of the model's own distribution: log_softmax of the row before any of the above.
struct SampleOutputs {
  std::span<TokenId> tokens;      // [num_samples]
  std::span<float> logprobs;      // [num_samples] of the token taken; empty: not wanted
  std::span<std::int32_t> ranks;  // [num_samples] 1: most likely; empty: not wanted
  std::int32_t max_top = 0;
  std::span<TokenId> top_tokens;  // [num_samples, max_top], most likely first; ties: lower id
  std::span<float> top_logprobs;  // [num_samples, max_top]
};

// Turns rows of logits into tokens. The outputs are host memory and valid on return.
struct SampleParams {
  const float* logits =
      nullptr;  // [num_rows, vocab_size], in the backend's memory; kept as they are
  std::int64_t num_rows = 0;
  std::int64_t vocab_size = 0;
  std::span<const SampleRow> samples;
  SampleOutputs outputs;
  void* workspace = nullptr;  // in the backend's memory, Backend::sample_workspace_bytes() of it
  std::int64_t workspace_bytes = 0;
};

}  // namespace pagedcore
