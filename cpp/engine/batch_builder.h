#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pagedcore/forward_batch.h"
#include "pagedcore/step_plan.h"

namespace pagedcore {

// Turns the spans of a plan into a ForwardBatch in host memory. Nothing allocates after
// construction, and a span costs its new tokens and its changed blocks only: the table matrix
// stays from step to step, one row for each Sequence::index().
class BatchBuilder {
 public:
  BatchBuilder(std::int32_t max_tokens, std::int32_t max_seqs, std::int32_t max_model_len,
               std::int32_t block_size);

  void begin();
  // Gives the batch's index of the span's first token. REQUIRES: room for it.
  std::int32_t add(const Span& span);
  // Adds spans of one token that follow those of the last batch from `last` on, of the same
  // sequences, and asks for their logits. REQUIRES: last >= num_seqs(); the last batch had spans of
  // one token up to these, and this one has so far.
  void advance(std::int32_t last, std::span<const Span> spans, std::span<const TokenId> tokens);
  std::int32_t num_seqs() const { return num_seqs_; }
  std::int32_t num_logit_rows() const { return num_logit_rows_; }
  // Asks for the logits of a token of the batch; gives the index of its row.
  std::int32_t add_logit_row(std::int32_t token) {
    logit_rows_[num_logit_rows_] = token;
    return num_logit_rows_++;
  }
  // The batch of what was added; valid until the next begin().
  ForwardBatch finish();

  // The row of `index` as the last batches left it.
  std::span<const BlockId> table_row(std::int32_t index) const {
    return std::span(tables_).subspan(index * table_stride_, table_stride_);
  }

 private:
  void update_table(const Span& span);
  std::int64_t slot_of(const BlockId* table, std::int32_t position) const {
    return (std::int64_t{table[position >> block_shift_]} << block_shift_) +
           (position & (block_size_ - 1));
  }

  std::int32_t block_size_;
  std::int32_t block_shift_;
  std::int64_t table_stride_;
  std::int32_t num_tokens_ = 0;
  std::int32_t num_seqs_ = 0;
  std::int32_t num_logit_rows_ = 0;
  std::int32_t max_query_len_ = 0;
  std::int32_t max_context_len_ = 0;
  std::vector<TokenId> tokens_;             // [max_tokens]
  std::vector<std::int32_t> positions_;     // [max_tokens]
  std::vector<std::int64_t> slots_;         // [max_tokens]
  std::vector<std::int32_t> logit_rows_;    // [max_tokens]
  std::vector<std::int32_t> query_starts_;  // [max_seqs + 1]
  std::vector<std::int32_t> context_lens_;  // [max_seqs]
  std::vector<std::int32_t> table_rows_;    // [max_seqs]
  std::vector<BlockId> tables_;             // [max_seqs, table_stride]
  std::vector<TableUpdate> updates_;
};

}  // namespace pagedcore
