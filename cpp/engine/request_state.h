#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "cpp/engine/beam_search.h"
#include "pagedcore/request.h"
#include "pagedcore/sampling_ops.h"
#include "pagedcore/sampling_params.h"
#include "pagedcore/sequence.h"

namespace pagedcore {

using Clock = std::chrono::steady_clock;

struct RequestState;

// The engine's side of one sequence: how its next token is sampled, and what it has so far.
struct SequenceState {
  RequestState* request = nullptr;
  Sequence* sequence = nullptr;  // null once it is finished
  // What is kept of a finished sequence of a held request: itself, or where it had no KV its
  // tokens.
  Sequence* held = nullptr;
  std::vector<TokenId> held_tokens;
  std::int32_t index = 0;
  double cumulative_logprob = 0.0;
  FinishReason finish_reason = FinishReason::kNone;
  TokenId stop_token = -1;
  SampleRow row;  // logit_row and position are set at each step

  // The penalties' view of its tokens, only where penalties are asked for.
  std::vector<SeenToken> seen;
  std::unordered_map<TokenId, std::int32_t> seen_index;

  // Only where updates wait for the request's end: its output so far.
  std::vector<TokenId> output;
  std::vector<TokenLogprob> logprobs;

  void note_seen(TokenId token, bool is_output);
  std::int32_t num_output() const;  // REQUIRES: it is live
  // Prompt and output of a live or held sequence.
  std::span<const TokenId> tokens() const {
    if (sequence != nullptr) return sequence->tokens();
    return held != nullptr ? held->tokens() : held_tokens;
  }
};

// The engine's side of one request.
struct RequestState {
  RequestId id = 0;
  SamplingParams params;
  RequestOptions options;
  std::int64_t seed = 0;
  std::int32_t num_prompt_tokens = 0;
  std::int32_t max_total_tokens = 0;
  std::int32_t num_sequences = 1;  // that it will have once its prompt is computed
  std::int32_t num_unfinished = 1;
  bool updates_at_end = false;  // best_of and beams: nothing is known before all are done
  bool wants_logprobs = false;

  std::vector<LogitBias> bias;
  std::vector<TokenId> stop_tokens;      // end of sequence and stop tokens, sorted
  std::vector<TokenId> banned_at_first;  // until min_tokens: bad tokens and stop tokens
  std::vector<TokenId> banned;           // bad tokens

  std::vector<std::unique_ptr<SequenceState>> sequences;

  // Beam search: sequences[i] is open beam i, and this step's offers of the beams sampled so far.
  std::unique_ptr<BeamSearch> beams;
  std::vector<BeamSearch::Candidate> candidates;
  std::int32_t num_beams_offered = 0;

  // Entries of prompt tokens [1, 1 + num_prompt_logprobs_done).
  std::vector<TokenLogprob> prompt_logprobs;
  std::int32_t num_prompt_logprobs_done = 0;
  bool prompt_logprobs_reported = false;

  RequestMetrics metrics;
  Clock::time_point arrival;
  bool has_run = false;
  bool is_held = false;  // keep its sequences when they finish
  std::string explanation;

  std::int32_t logprobs_per_token() const { return params.logprobs < 0 ? 0 : 1 + params.logprobs; }
  std::int32_t prompt_logprobs_per_token() const {
    return params.prompt_logprobs < 0 ? 0 : 1 + params.prompt_logprobs;
  }
  bool wants_prompt_logprobs() const { return params.prompt_logprobs >= 0; }
  // Its prompt has still to be computed; then its other sequences are forked.
  bool awaits_first_token() const {
    return static_cast<std::int32_t>(sequences.size()) < num_sequences;
  }
  std::int64_t seed_of(std::int32_t index) const;
  // Tokens that each beam reports: so many that enough are left without the banned ones.
  std::int32_t num_beam_candidates() const;
  bool uses_penalties() const;
  bool is_stop_token(TokenId token) const;

  // A new sequence of the request; its row is that of a first token.
  SequenceState& add_sequence(Sequence& sequence);
  // The sibling `sequence` was forked from `parent` with all of its tokens.
  SequenceState& fork_sequence(const SequenceState& parent, Sequence& sequence);
  // Readies the row of a sequence for its next token.
  void prepare_row(SequenceState& state) const;
  // Whether from now on only the position changes in the row of a sequence, and nothing but the
  // token is to be noted for each step.
  bool decodes_plainly(const SequenceState& state) const;
};

inline std::int32_t SequenceState::num_output() const {
  return sequence->num_tokens() - request->num_prompt_tokens;
}

}  // namespace pagedcore
