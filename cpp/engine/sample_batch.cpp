#include "cpp/engine/sample_batch.h"

#include <algorithm>

namespace pagedcore {

SampleBatch::SampleBatch(Backend& backend, const Buffer& workspace, std::int64_t vocab_size,
                         std::int32_t max_samples)
    : backend_(backend),
      vocab_size_(vocab_size),
      max_samples_(max_samples),
      workspace_(workspace),
      rows_(max_samples),
      tokens_(max_samples),
      logprobs_(max_samples),
      ranks_(max_samples) {}

void SampleBatch::reserve_top(std::int32_t num_top) {
  if (num_top <= max_top_) return;
  top_tokens_.resize(std::int64_t{max_samples_} * num_top);
  top_logprobs_.resize(top_tokens_.size());
  max_top_ = num_top;
}

SampleParams SampleBatch::params(const float* logits, std::int32_t num_rows) {
  SampleParams params;
  params.logits = logits;
  params.num_rows = num_rows;
  params.vocab_size = vocab_size_;
  params.samples = std::span(rows_).first(size_);
  params.outputs = {.tokens = tokens_,
                    .logprobs = logprobs_,
                    .ranks = ranks_,
                    .max_top = max_top_,
                    .top_tokens = top_tokens_,
                    .top_logprobs = top_logprobs_};
  params.workspace = workspace_.data();
  params.workspace_bytes = workspace_.bytes();
  return params;
}

void SampleBatch::write_logprobs(std::int32_t sample, std::span<TokenLogprob> entries) const {
  entries[0] = {tokens_[sample], logprobs_[sample], ranks_[sample]};
  const std::span<const TokenId> tokens = top_tokens(sample);
  const std::span<const float> logprobs = top_logprobs(sample);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    entries[i + 1] = {tokens[i], logprobs[i], static_cast<std::int32_t>(i) + 1};
  }
}

}  // namespace pagedcore
