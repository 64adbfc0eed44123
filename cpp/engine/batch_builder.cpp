#include "cpp/engine/batch_builder.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "pagedcore/sequence.h"

namespace pagedcore {

BatchBuilder::BatchBuilder(std::int32_t max_tokens, std::int32_t max_seqs,
                           std::int32_t max_model_len, std::int32_t block_size)
    : block_size_(block_size),
      block_shift_(std::countr_zero(static_cast<std::uint32_t>(block_size))),
      table_stride_((max_model_len + block_size - 1) / block_size),
      tokens_(max_tokens),
      positions_(max_tokens),
      slots_(max_tokens),
      logit_rows_(max_tokens),
      query_starts_(max_seqs + 1),
      context_lens_(max_seqs),
      table_rows_(max_seqs),
      tables_(max_seqs * table_stride_, BlockId{-1}) {
  updates_.reserve(max_seqs + max_tokens);
}

void BatchBuilder::begin() {
  num_tokens_ = 0;
  num_seqs_ = 0;
  num_logit_rows_ = 0;
  max_query_len_ = 0;
  max_context_len_ = 0;
  updates_.clear();
}

void BatchBuilder::update_table(const Span& span) {
  const std::span<const BlockId> table = span.sequence->table();
  const std::int32_t row = span.sequence->index();
  BlockId* entries = tables_.data() + row * table_stride_;
  const auto num_blocks = static_cast<std::int32_t>(table.size());
  for (std::int32_t i = span.first_changed_block; i < num_blocks; ++i) {
    if (entries[i] == table[i]) continue;
    entries[i] = table[i];
    updates_.push_back({row, i, table[i]});
  }
}

std::int32_t BatchBuilder::add(const Span& span) {
  const Sequence& sequence = *span.sequence;
  const std::int32_t first = num_tokens_;
  const std::int32_t end = span.context_len + span.query_len;
  update_table(span);
  query_starts_[num_seqs_] = first;
  context_lens_[num_seqs_] = span.context_len;
  table_rows_[num_seqs_] = sequence.index();
  ++num_seqs_;
  num_tokens_ += span.query_len;
  max_query_len_ = std::max(max_query_len_, span.query_len);
  max_context_len_ = std::max(max_context_len_, end);

  const TokenId* tokens = sequence.tokens().data();
  const BlockId* table = sequence.table().data();
  if (span.query_len == 1) {
    tokens_[first] = tokens[span.context_len];
    positions_[first] = span.context_len;
    slots_[first] = slot_of(table, span.context_len);
    return first;
  }
  for (std::int32_t position = span.context_len; position < end;) {
    const std::int32_t offset = position & (block_size_ - 1);
    const std::int32_t count = std::min(block_size_ - offset, end - position);
    const std::int64_t slot = slot_of(table, position);
    const std::int32_t at = first + position - span.context_len;
    for (std::int32_t i = 0; i < count; ++i) {
      tokens_[at + i] = tokens[position + i];
      positions_[at + i] = position + i;
      slots_[at + i] = slot + i;
    }
    position += count;
  }
  return first;
}

void BatchBuilder::advance(std::int32_t last, std::span<const Span> spans,
                           std::span<const TokenId> tokens) {
  const std::int32_t first = num_seqs_;
  const auto count = static_cast<std::int32_t>(spans.size());
  const std::int32_t offset_mask = block_size_ - 1;
  std::int32_t* const positions = positions_.data() + first;
  std::int32_t* const context_lens = context_lens_.data() + first;
  std::int64_t* const slots = slots_.data() + first;
  if (last != first) {
    std::copy_n(slots_.begin() + last, count, slots);
    std::copy_n(table_rows_.begin() + last, count, table_rows_.begin() + first);
  }
  std::int32_t max_position = 0;
  for (std::int32_t i = 0; i < count; ++i) {
    const Span& span = spans[i];
    const std::int32_t position = span.context_len;
    positions[i] = position;
    context_lens[i] = position;
    ++slots[i];
    max_position = std::max(max_position, position);
    if (span.table_changed || (position & offset_mask) == 0) [[unlikely]] {
      if (span.table_changed) update_table(span);
      slots[i] = slot_of(tables_.data() + table_rows_[first + i] * table_stride_, position);
    }
  }
  std::ranges::copy(tokens, tokens_.begin() + first);
  std::iota(logit_rows_.begin() + num_logit_rows_, logit_rows_.begin() + num_logit_rows_ + count,
            first);
  num_logit_rows_ += count;
  num_tokens_ = num_seqs_ = first + count;  // spans of one token so far
  max_query_len_ = std::max(max_query_len_, 1);
  max_context_len_ = std::max(max_context_len_, max_position + 1);
}

ForwardBatch BatchBuilder::finish() {
  query_starts_[num_seqs_] = num_tokens_;
  ForwardBatch batch;
  batch.num_tokens = num_tokens_;
  batch.num_seqs = num_seqs_;
  batch.num_logit_rows = num_logit_rows_;
  batch.max_query_len = max_query_len_;
  batch.max_context_len = max_context_len_;
  batch.tokens = tokens_.data();
  batch.positions = positions_.data();
  batch.slots = slots_.data();
  batch.query_starts = query_starts_.data();
  batch.context_lens = context_lens_.data();
  batch.table_rows = table_rows_.data();
  batch.block_tables = tables_.data();
  batch.table_stride = table_stride_;
  batch.block_size = block_size_;
  batch.logit_rows = logit_rows_.data();
  batch.table_updates = updates_;
  return batch;
}

}  // namespace pagedcore
