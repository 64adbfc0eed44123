#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/common/plan.h"
#include "cuda/common/row_squares.h"
#include "pagedcore/ops.h"
#include "pagedcore/types.h"

// The launchers. Each trusts its parameters, puts its work on `stream` and throws DeviceError if
// the launch fails; none allocates or waits. Pointers are device memory unless said otherwise.
namespace pagedcore::cuda {

void launch_embed(const EmbedParams& p, cudaStream_t stream);
void launch_norm(const NormParams& p, cudaStream_t stream);
// Gate and up are first multiplied by what ends the norm of the rows that they are products of.
void launch_gated_activation(const GatedActivationParams& p, const RowSquares& squares,
                             cudaStream_t stream);
void launch_rope_and_cache(const RopeAndCacheParams& p, cudaStream_t stream);

// y = activation(y * what ends a norm + bias), or y = bias; rows y_stride apart.
struct BiasActivationParams {
  std::int64_t num_rows = 0;
  std::int64_t width = 0;
  void* y = nullptr;
  DType y_dtype = DType::kFloat32;
  std::int64_t y_stride = 0;
  const void* bias = nullptr;  // [width]
  DType bias_dtype = DType::kFloat32;
  bool keep_y = true;  // false: y is not read
  RowSquares squares = {};
  Activation activation = Activation::kNone;
};
void launch_bias_activation(const BiasActivationParams& p, cudaStream_t stream);

// Whether launch_gemv serves these parameters: few rows, 16-bit or float32 rows of whole vectors.
bool gemv_serves(const LinearParams& p);
void launch_gemv(const LinearParams& p, cudaStream_t stream);

// Whether launch_skinny_linear serves these parameters, on Hopper: few rows, 16-bit, everything in
// whole vectors.
bool skinny_linear_serves(const LinearParams& p);
// Whether it does rope_and_cache of y in place of storing it too.
bool skinny_linear_serves(const LinearParams& p, const RopeAndCacheParams& rope);
void launch_skinny_linear(const LinearParams& p, const RopeAndCacheParams* rope,
                          cudaStream_t stream);

void launch_copy_blocks(const KvCacheView& cache, const BlockCopy* copies, std::int64_t num_copies,
                        cudaStream_t stream);
void launch_update_tables(BlockId* tables, std::int64_t table_stride, const TableUpdate* updates,
                          std::int64_t num_updates, cudaStream_t stream);

struct AttentionArgs {
  PagedAttentionParams op;
  ForwardBatch batch;
  const StepHeader* header = nullptr;
  const DecodeItem* items = nullptr;  // [header->num_items], then DecodeMembers
  const std::int32_t* prefill =
      nullptr;                        // [header->num_prefill] sequences with more than one token
  float* partial_out = nullptr;       // [slots, num_heads, head_dim]
  float2* partial_max_sum = nullptr;  // [slots, num_heads]
  std::uint32_t* arrivals = nullptr;  // [slots, head tiles] zero between launches
  int num_sms = 1;
  int sm_major = 8;
  int max_shared_bytes = 0;  // of a thread block
  int sm_shared_bytes = 0;   // of a processor
};

// The tensor-core kernels of one KV dtype and head_dim.
struct AttentionInstance {
  DType kv_dtype = DType::kBFloat16;
  int head_dim = 0;
  int prefill_rows = 0;  // of a query tile
  void (*decode)(const AttentionArgs&, std::int64_t max_items, cudaStream_t) = nullptr;
  void (*prefill)(const AttentionArgs&, std::int64_t num_tiles, cudaStream_t) = nullptr;
};

// Whether tensor-core kernels exist for this head_dim and KV dtype.
bool tensor_core_attention_serves(const PagedAttentionParams& p);
// All sequences with one token: header->num_items work items; `max_items` bounds the grid.
void launch_decode_attention(const AttentionArgs& args, std::int64_t max_items,
                             cudaStream_t stream);
// All sequences of args.prefill; `num_tiles` is what prefill_tiles() sums over them.
void launch_prefill_attention(const AttentionArgs& args, std::int64_t num_tiles,
                              cudaStream_t stream);
// Query tiles of a span, for launch_prefill_attention.
std::int64_t prefill_tiles(const PagedAttentionParams& p, std::int64_t query_len);
// Any head_dim and dtype, every token of the batch; slow.
void launch_simple_attention(const AttentionArgs& args, cudaStream_t stream);

}  // namespace pagedcore::cuda
