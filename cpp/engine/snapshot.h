#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cpp/engine/beam_search.h"
#include "pagedcore/dtype.h"
#include "pagedcore/request.h"
#include "pagedcore/sampling_params.h"
#include "pagedcore/types.h"

namespace pagedcore {

// The KV is of the first num_computed tokens. What an earlier sequence of the file holds is not
// there again.
struct SavedSequence {
  bool is_live = true;
  FinishReason finish_reason = FinishReason::kNone;
  TokenId stop_token = -1;
  double cumulative_logprob = 0.0;
  std::vector<TokenId> tokens;         // prompt, then output; none where nothing was kept
  std::vector<TokenLogprob> logprobs;  // of its output, where updates wait for the request's end
  std::int32_t num_computed = 0;
  std::int32_t sibling = -1;    // the earlier sequence that holds the KV of the first
  std::int32_t num_shared = 0;  // of its tokens
  std::vector<std::byte> kv;    // [layer][K, V][kv head][token from num_shared on][head_dim]
};

// What a saved request consists of, whatever its engine's block size was.
struct Snapshot {
  std::uint64_t model = 0;  // fingerprint of configuration and weights
  DType kv_dtype = DType::kFloat32;
  // Complete: with the end of sequence among its stop tokens, and the limit of the tokens.
  SamplingParams params;
  std::int64_t seed = 0;
  std::int32_t num_prompt_tokens = 0;
  bool needs_params = false;  // it cannot go on under its own: it had finished, or is one beam
  std::string cache_salt;
  std::vector<TokenLogprob> prompt_logprobs;  // of the first tokens
  std::int32_t num_prompt_logprobs_done = 0;
  bool prompt_logprobs_reported = false;
  std::vector<float> beam_scores;
  std::vector<BeamSearch::Hypothesis> hypotheses;
  std::vector<SavedSequence> sequences;
};

// A file: magic, version, length, the fields above, checksum; little-endian throughout.
std::vector<std::byte> encode(const Snapshot& snapshot);
// Throws InvalidArgument where the bytes are not a whole and unchanged file of this version.
Snapshot decode_snapshot(std::span<const std::byte> bytes);

// Throws InvalidArgument where what a file holds contradicts itself, or is not of a model of that
// vocabulary whose KV takes token_bytes a token.
void require_sound(const Snapshot& snapshot, std::int64_t vocab_size, std::int64_t token_bytes);

// FNV-1a over 8 bytes at a time.
std::uint64_t hash_bytes(std::span<const std::byte> bytes,
                         std::uint64_t hash = 0xcbf29ce484222325u);

}  // namespace pagedcore
