#include "cpp/engine/beam_search.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace pagedcore {

BeamSearch::BeamSearch(const SamplingParams& params, std::int32_t num_stop_tokens,
                       std::int32_t num_prompt_tokens, std::int32_t max_output_tokens)
    : beam_width_(params.beam_width),
      length_penalty_(params.length_penalty),
      early_stopping_(params.early_stopping),
      num_candidates_(std::max(2, 1 + num_stop_tokens) * params.beam_width),
      max_output_tokens_(max_output_tokens),
      beam_scores_(1, 0.0f) {
  next_.reserve(beam_width_);
  beam_scores_.reserve(beam_width_);
  hypotheses_.reserve(beam_width_ + 1);
  spare_tokens_.resize(beam_width_ + 1);
  for (std::vector<TokenId>& tokens : spare_tokens_) {
    tokens.reserve(num_prompt_tokens + max_output_tokens);
  }
}

void BeamSearch::restore(std::span<const float> beam_scores,
                         std::span<const Hypothesis> hypotheses) {
  beam_scores_.assign(beam_scores.begin(), beam_scores.end());
  for (const Hypothesis& known : hypotheses) {
    place(known.tokens, {}, {{}, known.log_probability, known.score, known.stop_token});
  }
}

void BeamSearch::select_best(std::vector<Candidate>& candidates) const {
  std::erase_if(candidates, [](const Candidate& c) { return c.token < 0 || std::isinf(c.score); });
  const auto is_better = [](const Candidate& a, const Candidate& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.beam != b.beam ? a.beam < b.beam : a.token < b.token;
  };
  std::ranges::sort(candidates, is_better);
  if (static_cast<std::int32_t>(candidates.size()) > num_candidates_) {
    candidates.resize(num_candidates_);
  }
}

float BeamSearch::penalised(float score, std::int32_t length) const {
  return score / static_cast<float>(std::pow(static_cast<double>(length), length_penalty_));
}

bool BeamSearch::may_place(float score) const {
  return static_cast<std::int32_t>(hypotheses_.size()) < beam_width_ ||
         score > hypotheses_.back().score;
}

void BeamSearch::place(std::span<const TokenId> tokens, std::span<const TokenId> more,
                       Hypothesis hypothesis) {
  const auto at = std::ranges::find_if(
      hypotheses_, [&](const Hypothesis& known) { return known.score < hypothesis.score; });
  hypothesis.tokens = std::move(spare_tokens_.back());
  spare_tokens_.pop_back();
  hypothesis.tokens.assign(tokens.begin(), tokens.end());
  hypothesis.tokens.insert(hypothesis.tokens.end(), more.begin(), more.end());
  hypotheses_.insert(at, std::move(hypothesis));
  if (static_cast<std::int32_t>(hypotheses_.size()) <= beam_width_) return;
  spare_tokens_.push_back(std::move(hypotheses_.back().tokens));
  hypotheses_.pop_back();
}

// The open beams' best possible score is guessed as transformers guesses it.
bool BeamSearch::can_improve(std::int32_t output_len) const {
  if (static_cast<std::int32_t>(hypotheses_.size()) < beam_width_) return true;
  if (early_stopping_ == EarlyStopping::kTrue) return false;
  const bool may_grow = early_stopping_ == EarlyStopping::kNever && length_penalty_ > 0.0f;
  const float best = penalised(beam_scores_.front(), may_grow ? max_output_tokens_ : output_len);
  return best > hypotheses_.back().score;
}

}  // namespace pagedcore
