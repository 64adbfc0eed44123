#pragma once

#include <cstdint>
#include <span>

#include "pagedcore/dtype.h"
#include "pagedcore/types.h"

namespace pagedcore {

// One entry of the table matrix that changed since the last step.
struct TableUpdate {
  std::int32_t row = 0;
  std::int32_t index = 0;
  BlockId block = -1;
};

// What one forward pass computes: the spans of all sequences laid end to end. Borrowed for the
// call. The engine fills one in host memory; Backend::stage() gives the same struct with pointers
// that the backend's ops can read.
struct ForwardBatch {
  std::int32_t num_tokens = 0;
  std::int32_t num_seqs = 0;
  std::int32_t num_logit_rows = 0;
  std::int32_t max_query_len = 0;
  std::int32_t max_context_len = 0;  // largest context_lens[i] + query_len of i

  const TokenId* tokens = nullptr;  // [num_tokens]
  // Token i is what the last sampling takes for its sample i, and not in `tokens`.
  bool follows_samples = false;
  const std::int32_t* positions = nullptr;  // [num_tokens] absolute position of each token
  const std::int64_t* slots =
      nullptr;  // [num_tokens] block * block_size + offset; -1: do not store
  const std::int32_t* query_starts = nullptr;  // [num_seqs + 1] first token of each sequence's span
  const std::int32_t* context_lens = nullptr;  // [num_seqs] tokens in the cache before this span
  const std::int32_t* table_rows = nullptr;    // [num_seqs] row of block_tables
  const BlockId* block_tables = nullptr;  // [rows, table_stride]; unused entries are unspecified
  std::int64_t table_stride = 0;
  std::int32_t block_size = 0;               // tokens of an entry of block_tables; 0: not said
  const std::int32_t* logit_rows = nullptr;  // [num_logit_rows] tokens whose logits are wanted

  std::span<const TableUpdate> table_updates;  // host memory, also after stage()
};

// The largest batches of an engine, and the shapes of its model that a backend's own memory grows
// with; what is 0 is not reserved for.
struct StepLimits {
  std::int32_t max_tokens = 0;
  std::int32_t max_seqs = 0;
  std::int64_t table_stride = 0;  // blocks of the longest sequence
  std::int64_t block_size = 0;    // tokens
  std::int64_t num_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t gated_width = 0;  // outputs of a gate
  DType operand = DType::kFloat32;
  friend bool operator==(const StepLimits&, const StepLimits&) = default;
};

}  // namespace pagedcore
