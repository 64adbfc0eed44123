#include <algorithm>
#include <functional>
#include <utility>

#include "cpp/engine/impl.h"

namespace pagedcore {

namespace {

FinishReason finish_reason_after(const SequenceState& state, TokenId token) {
  const RequestState& request = *state.request;
  if (!request.stop_tokens.empty() && state.num_output() >= request.params.min_tokens &&
      request.is_stop_token(token)) {
    return FinishReason::kStop;
  }
  if (state.sequence->num_tokens() >= request.max_total_tokens) return FinishReason::kLength;
  return FinishReason::kNone;
}

}  // namespace

void Engine::Impl::take_tokens() {
  auto target = targets.begin();
  for (std::int32_t i = take_from_lanes(0); i < batch.num_seqs(); i = take_from_lanes(i + 1)) {
    if (DecodeLane& lane = lanes[i]; lane.sequence != nullptr) {
      lane.update = updates.size();
      take_token(*lane.state, lane.sample);
    } else if (target != targets.end() && target->span == i) {
      take_from_target(*target++);
    }
  }
}

// Takes the tokens of the lanes from `first` on while these go on and their updates, in which
// nothing but the token changes, come where they were or before. Gives the first of the others.
std::int32_t Engine::Impl::take_from_lanes(std::int32_t first) {
  DecodeLane* const all = lanes.data();
  const std::int32_t num_lanes = batch.num_seqs();
  const std::int32_t first_update = updates.size() - first;
  const TokenId* const tokens = samples.tokens(0, samples.size()).data();
  std::int32_t i = first;
  for (; i < num_lanes; ++i) {
    DecodeLane& lane = all[i];
    const std::int32_t place = first_update + i;
    if (lane.update != place) {
      if (lane.update < place) break;
      updates.move(std::exchange(lane.update, place), place);
    }
    const TokenId token = tokens[lane.sample];
    if ((lane.stop_filter >> (token & 63) & 1) != 0) break;
    if (!is_ahead && lane.sequence->num_tokens() >= lane.last_position) break;
    scheduler.append_token(*lane.sequence, token);
  }
  updates.repeat(i - first);
  counters.num_output_tokens += i - first;
  return i;
}

void Engine::Impl::take_from_target(const SampleTarget& target) {
  RequestState& request = *target.state->request;
  if (request.beams != nullptr) {
    offer_candidates(*target.state, target.sample);
  } else if (request.awaits_first_token()) {
    take_first_tokens(*target.state, target.sample);
  } else {
    take_token(*target.state, target.sample);
  }
}

SequenceUpdate& Engine::Impl::new_update(RequestState& request) {
  SequenceUpdate& update = updates.add();
  update.request_id = request.id;
  update.metrics = &request.metrics;
  if (request.wants_prompt_logprobs() && !request.prompt_logprobs_reported) {
    update.prompt_logprobs = request.prompt_logprobs;
    update.prompt_logprobs_per_token = request.prompt_logprobs_per_token();
    request.prompt_logprobs_reported = true;
  }
  return update;
}

void Engine::Impl::report(const SequenceState& state, std::span<const TokenId> tokens,
                          std::span<const TokenLogprob> logprobs) {
  SequenceUpdate& update = new_update(*state.request);
  update.index = state.index;
  update.new_tokens = tokens;
  update.logprobs = logprobs;
  update.logprobs_per_token = state.request->logprobs_per_token();
  update.cumulative_logprob = state.cumulative_logprob;
  update.score = state.score;
  update.finish_reason = state.finish_reason;
  update.stop_token = state.stop_token;
  update.explanation = state.request->explanation;
}

// The new entries lie in logprob_entries, which build() has given room for all of the step.
std::span<const TokenLogprob> Engine::Impl::logprobs_of(const RequestState& request,
                                                        std::int32_t sample) {
  const std::size_t first = logprob_entries.size();
  logprob_entries.resize(first + request.logprobs_per_token());
  const std::span<TokenLogprob> entries = std::span(logprob_entries).subspan(first);
  samples.write_logprobs(sample, entries);
  return entries;
}

void Engine::Impl::take_first_tokens(SequenceState& state, std::int32_t sample) {
  RequestState& request = *state.request;
  const std::int32_t num_tokens = state.sequence->num_tokens();
  request.num_unfinished = request.num_sequences;
  for (std::int32_t i = 1; i < request.num_sequences; ++i) {
    link(request.add_sequence(), scheduler.fork(*state.sequence, num_tokens));
  }
  for (std::int32_t i = 0; i < request.num_sequences; ++i) {
    take_token(*request.sequences[i], sample + i);
  }
}

void Engine::Impl::take_token(SequenceState& state, std::int32_t sample) {
  RequestState& request = *state.request;
  const TokenId token = samples.token(sample);
  scheduler.append_token(*state.sequence, token);
  ++counters.num_output_tokens;
  if (request.metrics.first_token_us == 0) {
    request.metrics.first_token_us = std::max<std::int64_t>(1, metrics_of(request).total_us);
  }
  if (request.wants_logprobs) state.cumulative_logprob += samples.logprob(sample);
  std::span<const TokenLogprob> entries;
  if (request.params.logprobs >= 0) entries = logprobs_of(request, sample);
  const FinishReason reason = finish_reason_after(state, token);
  if (reason != FinishReason::kNone) {
    finish(state, reason, reason == FinishReason::kStop ? token : -1);
  }
  if (request.updates_at_end) {
    state.logprobs.insert(state.logprobs.end(), entries.begin(), entries.end());
    if (request.num_unfinished == 0) {
      rank_samples(request);
      report_ranked(request);
    }
  } else {
    report(state, samples.tokens(sample), entries);
  }
  if (request.num_unfinished == 0) end_request(request);
}

void Engine::Impl::finish(SequenceState& state, FinishReason reason, TokenId stop_token) {
  Sequence& sequence = *state.sequence;
  leave_lane(state);
  const bool has_kv = sequence.index() >= 0 && !sequence.is_rebuilding();
  if (state.request->is_held && has_kv) {
    scheduler.hold(sequence);
    state.held = &sequence;
  } else {
    std::vector<TokenId> tokens = scheduler.finish(sequence);
    if (state.request->keeps_tokens()) state.kept_tokens = std::move(tokens);
  }
  state.sequence = nullptr;
  state.finish_reason = reason;
  state.stop_token = stop_token;
  --state.request->num_unfinished;
}

void Engine::Impl::end_request(RequestState& request) {
  request.metrics.total_us = metrics_of(request).total_us;
  auto node = requests.extract(request.id);
  if (request.is_held) {
    held.insert(std::move(node));
  } else {
    ended.push_back(std::move(node.mapped()));
  }
}

// Of a request that sampled best_of sequences the n most likely stay, best first.
void Engine::Impl::rank_samples(RequestState& request) {
  std::vector<std::unique_ptr<SequenceState>>& sequences = request.sequences;
  std::ranges::stable_sort(sequences, std::ranges::greater(),
                           [](const auto& state) { return state->cumulative_logprob; });
  for (; std::ssize(sequences) > request.params.n; sequences.pop_back()) {
    if (Sequence* held = sequences.back()->held) scheduler.release(*held);
  }
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    sequences[i]->index = static_cast<std::int32_t>(i);
  }
}

void Engine::Impl::report_ranked(RequestState& request) {
  for (const auto& state : request.sequences) {
    report(*state, state->tokens().subspan(request.num_prompt_tokens), state->logprobs);
  }
}

}  // namespace pagedcore
