#include <algorithm>
#include <utility>

#include "cpp/engine/impl.h"
#include "pagedcore/error.h"

namespace pagedcore {

// All open beams of a request are sampled in the same step; the last one moves the search on.
void Engine::Impl::offer_candidates(SequenceState& beam, std::int32_t sample) {
  RequestState& request = *beam.request;
  const std::span<const TokenId> tokens = samples.top_tokens(sample);
  const std::span<const float> logprobs = samples.top_logprobs(sample);
  const std::span<const TokenId> banned = beam.row.banned;
  const float score = request.beams->beam_scores()[beam.index];
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (std::ranges::find(banned, tokens[i]) != banned.end()) continue;
    request.candidates.push_back({beam.index, tokens[i], score + logprobs[i]});
  }
  if (++request.num_beams_offered == static_cast<std::int32_t>(request.sequences.size())) {
    advance_beams(request);
  }
}

void Engine::Impl::advance_beams(RequestState& request) {
  const std::int32_t num_output = request.sequences[0]->num_output();
  for (const auto& beam : request.sequences) {
    PAGEDCORE_CHECK(beam->num_output() == num_output, beam->num_output(), " and ", num_output);
  }
  if (request.metrics.first_token_us == 0) {
    request.metrics.first_token_us = std::max<std::int64_t>(1, metrics_of(request).total_us);
  }
  const std::span<const BeamSearch::Candidate> next = request.beams->advance(
      request.candidates, num_output,
      [&](std::int32_t beam) { return request.sequences[beam]->sequence->tokens(); },
      [&](TokenId token) { return request.is_stop_token(token); });
  request.candidates.clear();
  request.num_beams_offered = 0;
  if (!next.empty()) return reorder_beams(request, next);
  rank_hypotheses(request, FinishReason::kNone);
  report_ranked(request);
  end_request(request);
}

// Beam i goes on as next[i]: beams that nobody goes on from end, then those that several go on
// from are forked, then each gets its token.
void Engine::Impl::reorder_beams(RequestState& request,
                                 std::span<const BeamSearch::Candidate> next) {
  std::swap(request.parents, request.sequences);
  for (const auto& parent : request.parents) parent->num_children = 0;
  for (const BeamSearch::Candidate& candidate : next) {
    ++request.parents[candidate.beam]->num_children;
  }
  for (const auto& parent : request.parents) {
    if (parent->num_children == 0) scheduler.finish(*parent->sequence);
  }
  for (const BeamSearch::Candidate& candidate : next) {
    SequenceState& parent = *request.parents[candidate.beam];
    if (--parent.num_children > 0) {
      Sequence& sequence = *parent.sequence;
      link(request.add_sequence(), scheduler.fork(sequence, sequence.num_tokens()));
    } else {
      request.sequences.push_back(nullptr);  // the parent itself, once its forks are made
    }
  }
  for (std::size_t i = 0; i < next.size(); ++i) {
    std::unique_ptr<SequenceState>& beam = request.sequences[i];
    if (beam == nullptr) beam = std::move(request.parents[next[i].beam]);
    beam->index = static_cast<std::int32_t>(i);
    beam->cumulative_logprob = next[i].score;
    scheduler.append_token(*beam->sequence, next[i].token);
    ++counters.num_output_tokens;
  }
  for (std::unique_ptr<SequenceState>& parent : request.parents) {
    if (parent == nullptr) continue;
    *parent = {};
    request.spare.push_back(std::move(parent));
  }
  request.parents.clear();
}

// Ends the open beams and puts the n best hypotheses in their place. A request that ends before so
// many are complete reports open beams too, as far as they came; `reason` is theirs, or kNone.
void Engine::Impl::rank_hypotheses(RequestState& request, FinishReason reason) {
  std::swap(request.parents, request.sequences);
  const auto is_full = [&] {
    return static_cast<std::int32_t>(request.sequences.size()) == request.params.n;
  };
  for (BeamSearch::Hypothesis& hypothesis : request.beams->hypotheses()) {
    if (is_full()) break;
    SequenceState& state = request.add_sequence();
    state.cumulative_logprob = hypothesis.log_probability;
    state.score = hypothesis.score;
    state.stop_token = hypothesis.stop_token;
    state.finish_reason = hypothesis.stop_token >= 0 ? FinishReason::kStop : FinishReason::kLength;
    state.kept_tokens = std::move(hypothesis.tokens);
    if (request.is_held) hold_hypothesis(request, state);
  }
  for (std::unique_ptr<SequenceState>& beam : request.parents) {
    if (reason != FinishReason::kNone && !is_full()) {
      finish(*beam, reason, -1);
      beam->index = static_cast<std::int32_t>(request.sequences.size());
      request.sequences.push_back(std::move(beam));
    } else {
      scheduler.finish(*beam->sequence);
    }
  }
  request.parents.clear();
  request.num_unfinished = 0;
}

// Keeps of a hypothesis the KV of those tokens that an open beam still shares with it.
void Engine::Impl::hold_hypothesis(RequestState& request, SequenceState& state) {
  const auto num_shared = [&](const std::unique_ptr<SequenceState>& beam) {
    const std::span<const TokenId> tokens = beam->sequence->tokens();
    return std::ranges::mismatch(tokens, state.kept_tokens).in1 - tokens.begin();
  };
  const auto& nearest = *std::ranges::max_element(request.parents, {}, num_shared);
  state.held = &scheduler.hold_fork(*nearest->sequence, std::move(state.kept_tokens));
  state.held->user = &state;
}

}  // namespace pagedcore
