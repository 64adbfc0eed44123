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
  // What is kept of a finished sequence where its request is held: itself, or where it had no KV
  // its tokens. Where updates wait for the request's end its tokens too.
  Sequence* held = nullptr;
  std::vector<TokenId> kept_tokens;
  std::int32_t index = 0;
  std::int32_t num_children = 0;  // scratch of a beam search's step
  double cumulative_logprob = 0.0;
  double score = 0.0;  // of a hypothesis
  FinishReason finish_reason = FinishReason::kNone;
  TokenId stop_token = -1;
  SampleRow row;  // logit_row and position are set at each step

  // The penalties' view of its first num_seen tokens, only where penalties are asked for.
  std::vector<SeenToken> seen;
  std::unordered_map<TokenId, std::int32_t> seen_index;
  std::int32_t num_seen = 0;

  std::vector<TokenLogprob> logprobs;  // of its output, where updates wait for the request's end

  void note_seen_tokens();
  std::int32_t num_output() const;  // REQUIRES: it is live
  // Prompt and output of a sequence that is live, or of which something is kept.
  std::span<const TokenId> tokens() const {
    if (sequence != nullptr) return sequence->tokens();
    return held != nullptr ? held->tokens() : kept_tokens;
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

  // Once it has ended and ranked its sequences: those that it reports, best first.
  std::vector<std::unique_ptr<SequenceState>> sequences;
  std::vector<std::unique_ptr<SequenceState>> spare;  // for sequences to come

  // Beam search: sequences[i] is open beam i, those of the step before, and this step's offers of
  // the beams sampled so far.
  std::unique_ptr<BeamSearch> beams;
  std::vector<std::unique_ptr<SequenceState>> parents;
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
  // Of sequences that have finished.
  bool keeps_tokens() const { return is_held || updates_at_end; }
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

  // Takes the memory of `count` calls of add_sequence() beforehand.
  void reserve_sequences(std::int32_t count);
  // A new sequence of the request, the last one so far; its row is that of a first token.
  SequenceState& add_sequence();
  // Readies a live sequence and its row for its next token.
  void prepare(SequenceState& state) const;
  // Whether from now on only the position changes in the row of a sequence, and nothing but the
  // token is to be noted for each step.
  bool decodes_plainly(const SequenceState& state) const;
};

inline void link(SequenceState& state, Sequence& sequence) {
  state.sequence = &sequence;
  sequence.user = &state;
}

inline std::int32_t SequenceState::num_output() const {
  return sequence->num_tokens() - request->num_prompt_tokens;
}

}  // namespace pagedcore
