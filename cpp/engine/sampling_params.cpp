#include "pagedcore/sampling_params.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "pagedcore/error.h"

namespace pagedcore {
namespace {

constexpr std::int32_t kMaxLogprobs = 1000;

void check_tokens(std::string_view field, const std::vector<TokenId>& tokens,
                  std::int64_t vocab_size) {
  for (TokenId token : tokens) {
    PAGEDCORE_REQUIRE(0 <= token && token < vocab_size, field, " must hold token ids from 0 to ",
                      vocab_size - 1, ", got ", token);
  }
}

void check_logprobs(std::string_view field, std::int32_t count, std::int64_t vocab_size) {
  const std::int64_t limit = std::min<std::int64_t>(kMaxLogprobs, vocab_size);
  PAGEDCORE_REQUIRE(-1 <= count && count <= limit, field, " must be -1 (none) or from 0 to ", limit,
                    ", got ", count);
}

void check_penalty(std::string_view field, float penalty) {
  PAGEDCORE_REQUIRE(-2.0f <= penalty && penalty <= 2.0f, field, " must be from -2 to 2, got ",
                    penalty);
}

void check_drawing(const SamplingParams& p) {
  PAGEDCORE_REQUIRE(p.temperature >= 0.0f && std::isfinite(p.temperature),
                    "temperature must be a finite number of at least 0, got ", p.temperature);
  PAGEDCORE_REQUIRE(p.top_p > 0.0f && p.top_p <= 1.0f, "top_p must be above 0 and at most 1, got ",
                    p.top_p);
  PAGEDCORE_REQUIRE(p.top_k >= -1, "top_k must be at least 1, or 0 or -1 (off), got ", p.top_k);
  PAGEDCORE_REQUIRE(p.min_p >= 0.0f && p.min_p <= 1.0f, "min_p must be from 0 to 1, got ", p.min_p);
  PAGEDCORE_REQUIRE(p.repetition_penalty > 0.0f && std::isfinite(p.repetition_penalty),
                    "repetition_penalty must be a finite number above 0, got ",
                    p.repetition_penalty);
  check_penalty("presence_penalty", p.presence_penalty);
  check_penalty("frequency_penalty", p.frequency_penalty);
}

void check_sequences(const SamplingParams& p) {
  PAGEDCORE_REQUIRE(p.n >= 1, "n must be at least 1, got ", p.n);
  PAGEDCORE_REQUIRE(p.best_of == 0 || p.best_of >= p.n, "best_of must be 0 (n) or at least n (",
                    p.n, "), got ", p.best_of);
  PAGEDCORE_REQUIRE(p.beam_width >= 0, "beam_width must be at least 0, got ", p.beam_width);
  PAGEDCORE_REQUIRE(std::isfinite(p.length_penalty), "length_penalty must be finite, got ",
                    p.length_penalty);
  if (p.beam_width == 0) return;
  PAGEDCORE_REQUIRE(p.n <= p.beam_width, "n must be at most beam_width (", p.beam_width, "), got ",
                    p.n);
  PAGEDCORE_REQUIRE(p.best_of == 0, "best_of must be 0 with beam search, got ", p.best_of);
  PAGEDCORE_REQUIRE(
      p.repetition_penalty == 1.0f && p.presence_penalty == 0.0f && p.frequency_penalty == 0.0f &&
          p.logit_bias.empty() && p.allowed_token_ids.empty(),
      "penalties, logit_bias and allowed_token_ids cannot be used with beam_width ", p.beam_width);
  PAGEDCORE_REQUIRE(p.logprobs == -1, "logprobs must be -1 (none) with beam search, got ",
                    p.logprobs);
}

}  // namespace

void SamplingParams::validate(std::int64_t vocab_size) const {
  check_drawing(*this);
  check_sequences(*this);
  PAGEDCORE_REQUIRE(!max_tokens || *max_tokens >= 1, "max_tokens must be at least 1, got ",
                    max_tokens.value_or(0));
  PAGEDCORE_REQUIRE(min_tokens >= 0, "min_tokens must be at least 0, got ", min_tokens);
  PAGEDCORE_REQUIRE(!max_tokens || min_tokens <= *max_tokens,
                    "min_tokens must be at most max_tokens (", max_tokens.value_or(0), "), got ",
                    min_tokens);
  check_tokens("stop_token_ids", stop_token_ids, vocab_size);
  check_tokens("allowed_token_ids", allowed_token_ids, vocab_size);
  check_tokens("bad_token_ids", bad_token_ids, vocab_size);
  for (const auto& [token, bias] : logit_bias) {
    PAGEDCORE_REQUIRE(0 <= token && token < vocab_size, "logit_bias must name token ids from 0 to ",
                      vocab_size - 1, ", got ", token);
    PAGEDCORE_REQUIRE(std::isfinite(bias), "logit_bias must be finite, got ", bias, " for token ",
                      token);
  }
  check_logprobs("logprobs", logprobs, vocab_size);
  check_logprobs("prompt_logprobs", prompt_logprobs, vocab_size);
  const auto is_bad = [&](TokenId token) { return std::ranges::count(bad_token_ids, token) > 0; };
  PAGEDCORE_REQUIRE(allowed_token_ids.empty() || !std::ranges::all_of(allowed_token_ids, is_bad),
                    "allowed_token_ids must hold a token that bad_token_ids does not ban");
}

}  // namespace pagedcore
