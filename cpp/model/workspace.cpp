#include "cpp/model/workspace.h"

#include <algorithm>

namespace pagedcore {
namespace {

constexpr std::int64_t kBufferAlignment = 256;

std::int64_t row_bytes(std::int64_t width, DType dtype) { return width * dtype_bits(dtype) / 8; }

}  // namespace

WorkspaceLayout lay_out_workspace(const ModelConfig& config, const ModelWeights& model,
                                  const Backend& backend, const DecoderLimits& limits) {
  WorkspaceLayout layout;
  layout.dtypes = backend.activation_dtypes(model.dtype);
  layout.head_operand = backend.activation_dtypes(model.lm_head.weights[0].dtype).operand;
  const ActivationDTypes& dtypes = layout.dtypes;

  const auto take = [&](std::int64_t rows, std::int64_t bytes_per_row) {
    const std::int64_t offset = layout.bytes;
    const std::int64_t bytes = rows * bytes_per_row;
    layout.bytes += (bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
    return offset;
  };
  const std::int64_t q_size = config.num_heads * config.head_dim;
  const std::int64_t qkv_size = q_size + 2 * config.num_kv_heads * config.head_dim;
  const bool projects = model.project_in.num_weights > 0;

  layout.residual = take(limits.max_tokens, row_bytes(config.hidden_size, dtypes.residual));
  const std::int64_t operand_width =
      std::max(config.hidden_size, projects ? config.embedding_size : 0);
  layout.operand = take(limits.max_tokens, row_bytes(operand_width, dtypes.operand));
  const std::int64_t num_squares = (config.hidden_size + SplitNorm::kWidth - 1) / SplitNorm::kWidth;
  layout.squares = take(limits.max_tokens, row_bytes(num_squares, DType::kFloat32));
  const std::int64_t attention_bytes = row_bytes(q_size, dtypes.operand);
  layout.query =
      take(limits.max_tokens, std::max(row_bytes(q_size, dtypes.query), attention_bytes));
  layout.wide =
      take(limits.max_tokens, std::max({row_bytes(qkv_size, dtypes.qkv), attention_bytes,
                                        row_bytes(config.hidden_size, dtypes.residual),
                                        row_bytes(config.intermediate_size, dtypes.operand)}));
  layout.last =
      take(limits.max_logit_rows,
           row_bytes(config.hidden_size, projects ? dtypes.operand : layout.head_operand));
  if (projects) {
    layout.projected =
        take(limits.max_logit_rows, row_bytes(config.embedding_size, layout.head_operand));
  }
  layout.logits = take(limits.max_logit_rows, row_bytes(config.vocab_size, DType::kFloat32));
  return layout;
}

}  // namespace pagedcore
