#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "pagedcore/backend.h"
#include "pagedcore/request.h"
#include "pagedcore/sampling_ops.h"

namespace pagedcore {

// Samples of one step: their rows and their outputs. Nothing allocates in a step.
class SampleBatch {
 public:
  // `workspace` is that of Backend::sample() for `max_samples` and outlives the batch.
  SampleBatch(Backend& backend, const Buffer& workspace, std::int64_t vocab_size,
              std::int32_t max_samples);

  // Makes room for rows that report up to `num_top` tokens.
  void reserve_top(std::int32_t num_top);

  void clear() { size_ = 0; }
  std::int32_t size() const { return size_; }
  std::int64_t max_logprob_entries() const { return std::int64_t{size()} * (1 + max_top_); }
  // Adds a sample and gives its index. REQUIRES: size() < max_samples.
  std::int32_t add(const SampleRow& row) {
    rows_[size_] = row;
    return size_++;
  }
  // Adds the `count` samples that the last batch had from `last` on, one position further, from as
  // many logit rows. REQUIRES: last >= size().
  void advance(std::int32_t last, std::int32_t count, std::int32_t first_logit_row) {
    SampleRow* const rows = rows_.data() + size_;
    if (last != size_) std::copy_n(rows_.data() + last, count, rows);
    for (std::int32_t i = 0; i < count; ++i) {
      rows[i].logit_row = first_logit_row + i;
      ++rows[i].position;
    }
    size_ += count;
  }
  SampleRow& row(std::int32_t sample) { return rows_[sample]; }
  std::int64_t position(std::int32_t sample) const { return rows_[sample].position; }

  // Samples all rows from logits [num_rows, vocab_size].
  void run(const float* logits, std::int32_t num_rows) {
    backend_.sample(params(logits, num_rows));
  }
  // The same in two halves: rows may change in between, outputs are there after finish().
  void start(const float* logits, std::int32_t num_rows) {
    backend_.start_sampling(params(logits, num_rows));
  }
  void finish() { backend_.finish_sampling(); }
  // Waits for all that was started, whose outputs nobody wants.
  void drop_started() {
    for (int i = 0; i < 2; ++i) backend_.finish_sampling();
  }

  TokenId token(std::int32_t sample) const { return tokens_[sample]; }
  std::span<const TokenId> tokens(std::int32_t sample, std::int32_t count = 1) const {
    return std::span(tokens_).subspan(sample, count);
  }
  float logprob(std::int32_t sample) const { return logprobs_[sample]; }
  std::span<const TokenId> top_tokens(std::int32_t sample) const {
    return std::span(top_tokens_).subspan(std::int64_t{sample} * max_top_, rows_[sample].num_top);
  }
  std::span<const float> top_logprobs(std::int32_t sample) const {
    return std::span(top_logprobs_).subspan(std::int64_t{sample} * max_top_, rows_[sample].num_top);
  }
  // The token itself, then the row's num_top most likely ones, to entries [1 + num_top].
  void write_logprobs(std::int32_t sample, std::span<TokenLogprob> entries) const;

 private:
  SampleParams params(const float* logits, std::int32_t num_rows);

  Backend& backend_;
  std::int64_t vocab_size_;
  std::int32_t max_samples_;
  std::int32_t max_top_ = 0;
  const Buffer& workspace_;
  std::int32_t size_ = 0;
  std::vector<SampleRow> rows_;  // [max_samples]
  std::vector<TokenId> tokens_;
  std::vector<float> logprobs_;
  std::vector<std::int32_t> ranks_;
  std::vector<TokenId> top_tokens_;
  std::vector<float> top_logprobs_;
};

}  // namespace pagedcore
