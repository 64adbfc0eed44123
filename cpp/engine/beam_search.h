#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pagedcore/sampling_params.h"
#include "pagedcore/types.h"

namespace pagedcore {

// The choices of one beam search, token for token those of transformers' generate(num_beams=k,
// do_sample=False). Sees scores only; the engine forks and ends the sequences. Nothing allocates
// after construction.
class BeamSearch {
 public:
  // A possible next token of an open beam.
  struct Candidate {
    std::int32_t beam = 0;
    TokenId token = -1;
    float score = 0.0f;  // sum of logprobs with this token
  };
  struct Hypothesis {
    std::vector<TokenId> tokens;  // prompt, then output
    float log_probability = 0.0f;
    float score = 0.0f;  // length-penalised
    TokenId stop_token = -1;
  };

  BeamSearch(const SamplingParams& params, std::int32_t num_stop_tokens,
             std::int32_t num_prompt_tokens, std::int32_t max_output_tokens);
  // Goes on from what another search had come to.
  void restore(std::span<const float> beam_scores, std::span<const Hypothesis> hypotheses);

  // Candidates that each open beam must offer, the most likely ones.
  std::int32_t num_candidates() const { return num_candidates_; }
  std::span<const float> beam_scores() const { return beam_scores_; }  // of the open beams

  // Takes the candidates of all open beams, each of `output_len` tokens so far, and decides.
  // `tokens_of(beam)` gives a beam's tokens, prompt first, and `is_stop(token)` whether it ends
  // one. Gives the beams to go on with; none when the search is over.
  template <typename TokensOf, typename IsStop>
  std::span<const Candidate> advance(std::vector<Candidate>& candidates, std::int32_t output_len,
                                     const TokensOf& tokens_of, const IsStop& is_stop);

  // Best first; at most beam_width. The caller may move their tokens away when the search is over.
  std::span<Hypothesis> hypotheses() { return hypotheses_; }
  std::span<const Hypothesis> hypotheses() const { return hypotheses_; }

 private:
  void select_best(std::vector<Candidate>& candidates) const;
  float penalised(float score, std::int32_t length) const;
  // False where beam_width better ones are known.
  bool may_place(float score) const;
  // Places a hypothesis of `tokens` and then `more`.
  void place(std::span<const TokenId> tokens, std::span<const TokenId> more, Hypothesis hypothesis);
  bool can_improve(std::int32_t output_len) const;

  std::int32_t beam_width_;
  float length_penalty_;
  EarlyStopping early_stopping_;
  std::int32_t num_candidates_;
  std::int32_t max_output_tokens_;
  std::vector<float> beam_scores_;
  std::vector<Candidate> next_;
  std::vector<Hypothesis> hypotheses_;
  std::vector<std::vector<TokenId>> spare_tokens_;  // room for the tokens of hypotheses to come
};

template <typename TokensOf, typename IsStop>
std::span<const BeamSearch::Candidate> BeamSearch::advance(std::vector<Candidate>& candidates,
                                                           std::int32_t output_len,
                                                           const TokensOf& tokens_of,
                                                           const IsStop& is_stop) {
  select_best(candidates);
  const std::int32_t length = output_len + 1;
  const bool is_last = length >= max_output_tokens_;
  next_.clear();
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const Candidate& candidate = candidates[i];
    const bool stops = is_stop(candidate.token);
    if (!stops && !is_last) {
      if (static_cast<std::int32_t>(next_.size()) < beam_width_) next_.push_back(candidate);
      continue;
    }
    // Candidates beyond the beam's width are there to go on with, not to end with.
    const float score = penalised(candidate.score, length);
    if (static_cast<std::int32_t>(i) >= beam_width_ || !may_place(score)) continue;
    place(tokens_of(candidate.beam), {&candidate.token, 1},
          {{}, candidate.score, score, stops ? candidate.token : -1});
  }
  beam_scores_.clear();
  for (const Candidate& candidate : next_) beam_scores_.push_back(candidate.score);
  if (next_.empty() || !can_improve(length)) next_.clear();
  return next_;
}

}  // namespace pagedcore
