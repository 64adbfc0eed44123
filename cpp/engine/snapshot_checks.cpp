// What a file may hold is checked once, here: nothing behind this trusts it for less.
#include <algorithm>
#include <cmath>

#include "cpp/engine/snapshot.h"
#include "pagedcore/error.h"

namespace pagedcore {
namespace {

void require_tokens(std::span<const TokenId> tokens, std::int64_t vocab_size) {
  for (const TokenId token : tokens) {
    PAGEDCORE_REQUIRE(token >= 0 && token < vocab_size, "the snapshot holds token ", token,
                      ", the model's vocabulary has ", vocab_size);
  }
}

void require_kv(std::span<const SavedSequence> sequences, std::size_t index,
                std::int64_t token_bytes) {
  const SavedSequence& s = sequences[index];
  const auto num_tokens = static_cast<std::int32_t>(s.tokens.size());
  const bool has_sibling = s.sibling >= 0 && s.sibling < static_cast<std::int32_t>(index) &&
                           sequences[s.sibling].is_live;
  const std::int32_t max_shared =
      has_sibling ? std::min(s.num_computed, sequences[s.sibling].num_computed) : 0;
  PAGEDCORE_REQUIRE(s.num_computed >= 0 && s.num_computed < std::max(num_tokens, 1) &&
                        s.num_shared >= 0 && s.num_shared <= max_shared &&
                        has_sibling == (s.sibling != -1),
                    "the snapshot counts ", s.num_computed, " of ", num_tokens,
                    " tokens as computed, ", s.num_shared, " of these for sequence ", s.sibling);
  PAGEDCORE_REQUIRE(
      s.num_shared == 0 || std::equal(s.tokens.begin(), s.tokens.begin() + s.num_shared,
                                      sequences[s.sibling].tokens.begin()),
      "the snapshot shares the KV of tokens that differ");
  const std::int64_t num_own = s.num_computed - s.num_shared;
  PAGEDCORE_REQUIRE(num_own * token_bytes == static_cast<std::int64_t>(s.kv.size()),
                    "the snapshot holds ", s.kv.size(), " bytes of KV for ", num_own, " tokens of ",
                    token_bytes, " bytes");
}

// Prompt and output of a sequence that goes on.
std::span<const TokenId> live_tokens(const Snapshot& snapshot) {
  const auto found = std::ranges::find_if(snapshot.sequences, &SavedSequence::is_live);
  PAGEDCORE_REQUIRE(found != snapshot.sequences.end(),
                    "the snapshot has no sequence to go on with");
  return found->tokens;
}

// The tokens of a sequence of the request, or of a hypothesis.
void require_of_request(const Snapshot& snapshot, std::span<const TokenId> tokens,
                        std::int64_t vocab_size) {
  require_tokens(tokens, vocab_size);
  const auto num_tokens = static_cast<std::int64_t>(tokens.size());
  const std::int64_t limit =
      std::int64_t{snapshot.num_prompt_tokens} + snapshot.params.max_tokens.value_or(0);
  PAGEDCORE_REQUIRE(num_tokens >= snapshot.num_prompt_tokens && num_tokens <= limit,
                    "the snapshot has a sequence of ", num_tokens, " tokens, with ",
                    snapshot.num_prompt_tokens, " of the prompt and at most ", limit);
  PAGEDCORE_REQUIRE(std::equal(tokens.begin(), tokens.begin() + snapshot.num_prompt_tokens,
                               live_tokens(snapshot).begin()),
                    "the snapshot's sequences have different prompts");
}

void require_beams(const Snapshot& snapshot, std::int64_t vocab_size) {
  const std::size_t beam_width = snapshot.params.beam_width;
  PAGEDCORE_REQUIRE(snapshot.beam_scores.size() == snapshot.sequences.size() &&
                        snapshot.hypotheses.size() <= beam_width,
                    "the snapshot has ", snapshot.beam_scores.size(), " scores of beams and ",
                    snapshot.hypotheses.size(), " hypotheses for ", beam_width, " beams");
  const auto is_finite = [](float score) { return std::isfinite(score); };
  bool is_sound = std::ranges::all_of(snapshot.beam_scores, is_finite);
  for (const SavedSequence& beam : snapshot.sequences) {
    is_sound &= beam.is_live && beam.tokens.size() == snapshot.sequences[0].tokens.size();
  }
  for (const BeamSearch::Hypothesis& hypothesis : snapshot.hypotheses) {
    is_sound &= is_finite(hypothesis.score) && is_finite(hypothesis.log_probability);
    require_of_request(snapshot, hypothesis.tokens, vocab_size);
  }
  PAGEDCORE_REQUIRE(is_sound, "the snapshot's beams are not abreast, or their scores not finite");
}

void require_logprobs(const Snapshot& snapshot) {
  const SamplingParams& params = snapshot.params;
  const std::int32_t num_rows = snapshot.num_prompt_tokens - 1;
  const std::int64_t per_row = 1 + std::int64_t{params.prompt_logprobs};
  const std::int64_t expected = snapshot.prompt_logprobs_reported ? 0 : num_rows * per_row;
  PAGEDCORE_REQUIRE(static_cast<std::int64_t>(snapshot.prompt_logprobs.size()) == expected &&
                        snapshot.num_prompt_logprobs_done >= 0 &&
                        snapshot.num_prompt_logprobs_done <= num_rows,
                    "the snapshot holds ", snapshot.prompt_logprobs.size(),
                    " logprobs of the prompt, not ", expected);
  const bool updates_at_end = params.best_of > params.n;
  for (const SavedSequence& s : snapshot.sequences) {
    const auto num_output = static_cast<std::int64_t>(s.tokens.size()) - snapshot.num_prompt_tokens;
    const std::int64_t wanted = updates_at_end ? num_output * (1 + params.logprobs) : 0;
    PAGEDCORE_REQUIRE(static_cast<std::int64_t>(s.logprobs.size()) == wanted, "the snapshot holds ",
                      s.logprobs.size(), " logprobs of a sequence, not ", wanted);
  }
}

// That the request can go on under its own parameters.
void require_whole(const Snapshot& snapshot, std::int64_t vocab_size) {
  const SamplingParams& params = snapshot.params;
  const auto count = static_cast<std::int32_t>(snapshot.sequences.size());
  const std::int32_t num_sequences = std::max({params.n, params.best_of, params.beam_width});
  const SavedSequence& first = snapshot.sequences[0];
  const bool awaits_first_token =
      first.is_live && static_cast<std::int32_t>(first.tokens.size()) == snapshot.num_prompt_tokens;
  PAGEDCORE_REQUIRE(params.beam_width > 0 ? count <= num_sequences
                                          : count == (awaits_first_token ? 1 : num_sequences),
                    "the snapshot has ", count, " sequences of a request of ", num_sequences);
  for (const SavedSequence& s : snapshot.sequences) {
    const bool has_ended = s.finish_reason == FinishReason::kStop ||
                           s.finish_reason == FinishReason::kLength ||
                           s.finish_reason == FinishReason::kCapacity;
    PAGEDCORE_REQUIRE(s.is_live ? s.finish_reason == FinishReason::kNone : has_ended,
                      "the snapshot has a sequence that both goes on and has ended");
    PAGEDCORE_REQUIRE(std::isfinite(s.cumulative_logprob),
                      "the snapshot has a sequence whose logprobs are not finite");
    // Of what has ended, only what is still to be reported is there.
    const bool must_have_tokens = s.is_live || params.best_of > params.n;
    if (must_have_tokens || !s.tokens.empty()) require_of_request(snapshot, s.tokens, vocab_size);
  }
  require_logprobs(snapshot);
  if (params.beam_width > 0) require_beams(snapshot, vocab_size);
}

}  // namespace

void require_sound(const Snapshot& snapshot, std::int64_t vocab_size, std::int64_t token_bytes) {
  const std::vector<SavedSequence>& sequences = snapshot.sequences;
  PAGEDCORE_REQUIRE(!sequences.empty(), "the snapshot has no sequences");
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    require_tokens(sequences[i].tokens, vocab_size);
    require_kv(sequences, i, token_bytes);
  }
  if (snapshot.needs_params) return;
  const EarlyStopping stopping = snapshot.params.early_stopping;
  PAGEDCORE_REQUIRE(stopping == EarlyStopping::kTrue || stopping == EarlyStopping::kFalse ||
                        stopping == EarlyStopping::kNever,
                    "the snapshot has an unknown early_stopping");
  PAGEDCORE_REQUIRE(snapshot.params.max_tokens.has_value(), "the snapshot has no max_tokens");
  snapshot.params.validate(vocab_size);
  const auto num_tokens = static_cast<std::int64_t>(live_tokens(snapshot).size());
  PAGEDCORE_REQUIRE(snapshot.num_prompt_tokens >= 1 && snapshot.num_prompt_tokens <= num_tokens,
                    "the snapshot has a prompt of ", snapshot.num_prompt_tokens,
                    " tokens in a sequence of ", num_tokens);
  require_whole(snapshot, vocab_size);
}

}  // namespace pagedcore
