#include "cpp/engine/request_state.h"

#include <algorithm>

#include "cpp/base/philox.h"
#include "cpp/base/reserve.h"

namespace pagedcore {

void SequenceState::note_seen_tokens() {
  const std::span<const TokenId> tokens = sequence->tokens();
  reserve_more(seen, tokens.size() - num_seen);
  for (; num_seen < sequence->num_tokens(); ++num_seen) {
    const TokenId token = tokens[num_seen];
    const auto [found, is_new] =
        seen_index.try_emplace(token, static_cast<std::int32_t>(seen.size()));
    if (is_new) seen.push_back({token, 0});
    seen[found->second].output_count += num_seen >= request->num_prompt_tokens;
  }
}

std::int64_t RequestState::seed_of(std::int32_t index) const { return philox_stream(seed, index); }

std::int32_t RequestState::num_beam_candidates() const {
  return beams->num_candidates() + static_cast<std::int32_t>(banned_at_first.size());
}

bool RequestState::uses_penalties() const {
  return params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
         params.frequency_penalty != 0.0f;
}

bool RequestState::is_stop_token(TokenId token) const {
  return std::ranges::binary_search(stop_tokens, token);
}

void RequestState::reserve_sequences(std::int32_t count) {
  spare.reserve(std::max(count, 2 * num_sequences));
  while (static_cast<std::int32_t>(spare.size()) < count) {
    spare.push_back(std::make_unique<SequenceState>());
  }
  for (const auto& state : spare) state->logprobs.reserve(logprobs_per_token());
  sequences.reserve(std::max(count, num_sequences));
}

SequenceState& RequestState::add_sequence() {
  if (spare.empty()) reserve_sequences(1);
  sequences.push_back(std::move(spare.back()));
  spare.pop_back();
  SequenceState& state = *sequences.back();
  state.request = this;
  state.index = static_cast<std::int32_t>(sequences.size()) - 1;
  SampleRow& row = state.row;
  row.temperature = params.beam_width > 0 ? 0.0f : params.temperature;
  row.top_k = std::max(params.top_k, 0);
  row.top_p = params.top_p;
  row.min_p = params.min_p;
  row.repetition_penalty = params.repetition_penalty;
  row.presence_penalty = params.presence_penalty;
  row.frequency_penalty = params.frequency_penalty;
  row.bias = bias;
  row.allowed = params.allowed_token_ids;
  row.num_top = wants_logprobs ? std::max(params.logprobs, 0) : -1;
  if (beams != nullptr) row.num_top = num_beam_candidates();
  row.seed = seed_of(state.index);
  return state;
}

bool RequestState::decodes_plainly(const SequenceState& state) const {
  // The first update may bring more than its token.
  const bool has_begun = metrics.first_token_us != 0 && !awaits_first_token();
  return has_begun && state.num_output() >= params.min_tokens && !uses_penalties() &&
         !wants_logprobs && !updates_at_end;
}

void RequestState::prepare(SequenceState& state) const {
  if (uses_penalties()) state.note_seen_tokens();
  if (updates_at_end) reserve_more(state.logprobs, logprobs_per_token());
  state.row.position = state.sequence->num_tokens();
  state.row.seen = state.seen;
  state.row.banned = state.num_output() < params.min_tokens ? banned_at_first : banned;
}

}  // namespace pagedcore
