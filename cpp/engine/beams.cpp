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
  const float score = request.beams->beam_score(beam.index);
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
      [&](std::int32_t beam) {
        return request.sequences[beam]->sequence->tokens().subspan(request.num_prompt_tokens);
      },
      [&](TokenId token) { return request.is_stop_token(token); });
  request.candidates.clear();
  request.num_beams_offered = 0;
  if (!next.empty()) return reorder_beams(request, next);
  for (const auto& beam : request.sequences) {
    scheduler.finish(*beam->sequence);
    beam->sequence = nullptr;
  }
  request.num_unfinished = 0;
  report_hypotheses(request);
  end_request(request);
}

// Beam i goes on as next[i]: beams that nobody goes on from end, then those that several go on
// from are forked, then each gets its token.
void Engine::Impl::reorder_beams(RequestState& request,
                                 std::span<const BeamSearch::Candidate> next) {
  std::vector<std::unique_ptr<SequenceState>> parents = std::exchange(request.sequences, {});
  std::vector<std::int32_t> num_children(parents.size(), 0);
  for (const BeamSearch::Candidate& candidate : next) ++num_children[candidate.beam];
  for (std::size_t i = 0; i < parents.size(); ++i) {
    if (num_children[i] == 0) scheduler.finish(*parents[i]->sequence);
  }
  for (const BeamSearch::Candidate& candidate : next) {
    const SequenceState& parent = *parents[candidate.beam];
    if (--num_children[candidate.beam] > 0) {
      request.fork_sequence(parent,
                            scheduler.fork(*parent.sequence, parent.sequence->num_tokens()));
    } else {
      request.sequences.push_back(nullptr);  // the parent itself, once its forks are made
    }
  }
  for (std::size_t i = 0; i < next.size(); ++i) {
    std::unique_ptr<SequenceState>& beam = request.sequences[i];
    if (beam == nullptr) beam = std::move(parents[next[i].beam]);
    beam->index = static_cast<std::int32_t>(i);
    beam->cumulative_logprob = next[i].score;
    scheduler.append_token(*beam->sequence, next[i].token);
    ++counters.num_output_tokens;
  }
}

// Reports the n best hypotheses. Where the request ended before so many were complete, its open
// beams follow, as far as they came.
void Engine::Impl::report_hypotheses(RequestState& request) {
  const std::vector<BeamSearch::Hypothesis>& hypotheses = request.beams->hypotheses();
  std::int32_t num_reported = 0;
  for (const BeamSearch::Hypothesis& hypothesis : hypotheses) {
    if (num_reported == request.params.n) return;
    SequenceUpdate& update = new_update(request);
    update.index = num_reported++;
    update.new_tokens = hypothesis.output;
    update.cumulative_logprob = hypothesis.log_probability;
    update.score = hypothesis.score;
    update.stop_token = hypothesis.stop_token;
    update.finish_reason = hypothesis.stop_token >= 0 ? FinishReason::kStop : FinishReason::kLength;
  }
  for (const auto& beam : request.sequences) {
    if (num_reported == request.params.n || beam->sequence == nullptr) return;
    const std::span<const TokenId> output =
        beam->sequence->tokens().subspan(request.num_prompt_tokens);
    beam->output.assign(output.begin(), output.end());
    report(*beam, beam->output, {});
    updates.back().index = num_reported++;
  }
}

}  // namespace pagedcore
