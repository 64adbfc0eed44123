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
// Order: bias, allowed, banned, penalties, temperature, top-k, top-p, min-p, draw.
struct SampleRow {
  std::int32_t logit_row = 0;  // several samples may read one row
  float temperature = 0.0f;    // 0: greedy, the lowest token id wins a tie
  std::int32_t top_k = 0;      // 0: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::span<const SeenToken> seen;
  std::span<const LogitBias> bias;
  std::span<const TokenId> allowed;  // empty: all
  std::span<const TokenId> banned;   // bad tokens, and stop tokens until min_tokens is reached
  std::int64_t seed = 0;             // random numbers are a function of (seed, position) alone
  std::int64_t position = 0;
  std::int32_t num_top = 0;    // most likely tokens to report, at most SampleOutputs::max_top
  TokenId given_token = -1;    // >= 0: take this token instead of drawing (prompt logprobs)
};

// Logprobs are of the model's own distribution: log_softmax of the row before any of the above.
struct SampleOutputs {
  std::span<TokenId> tokens;        // [num_samples]
  std::span<float> logprobs;        // [num_samples] of the token taken; empty: not wanted
  std::span<std::int32_t> ranks;    // [num_samples] 1: most likely; empty: not wanted
  std::int32_t max_top = 0;
  std::span<TokenId> top_tokens;    // [num_samples, max_top], most likely first; ties: lower id
  std::span<float> top_logprobs;    // [num_samples, max_top]
};

// Turns rows of logits into tokens. The outputs are host memory and valid on return.
struct SampleParams {
  const float* logits = nullptr;  // [num_rows, vocab_size], in the backend's memory; kept as they are
  std::int64_t num_rows = 0;
  std::int64_t vocab_size = 0;
  std::span<const SampleRow> samples;
  SampleOutputs outputs;
  void* workspace = nullptr;  // in the backend's memory, Backend::sample_workspace_bytes() of it
  std::int64_t workspace_bytes = 0;
};

}  // namespace pagedcore
