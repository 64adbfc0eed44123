#pragma once

#include <cstdint>

#include "pagedcore/dtype.h"
#include "pagedcore/forward_batch.h"
#include "pagedcore/kv_cache.h"
#include "pagedcore/linear_ops.h"

namespace pagedcore {

// Parameters of the backend's ops. Pointers are in the backend's memory unless said otherwise and
// are borrowed for the call; strides are in elements; null means absent. Sums are in float32.

enum class NormKind : std::int8_t { kRms, kLayer, kNone };  // kNone: y = x, converted to y_dtype

// y[i] = table[ids[i] + id_offset], or added to y[i].
struct EmbedParams {
  std::int64_t num_tokens = 0;
  std::int64_t width = 0;
  const std::int32_t* ids = nullptr;  // [num_tokens]
  std::int64_t id_offset = 0;
  const void* table = nullptr;  // [table_rows, width]
  DType table_dtype = DType::kFloat32;
  std::int64_t table_rows = 0;
  bool accumulate = false;
  void* y = nullptr;  // [num_tokens, width]
  DType y_dtype = DType::kFloat32;

  friend bool operator==(const EmbedParams&, const EmbedParams&) = default;
};

// y[i] = norm(x[rows ? rows[i] : i]) * weight + bias.
// Without rows, y may be x where their dtypes agree.
struct NormParams {
  NormKind kind = NormKind::kRms;
  std::int64_t num_rows = 0;
  std::int64_t width = 0;
  const void* x = nullptr;  // [.., width]
  DType x_dtype = DType::kFloat32;
  const std::int32_t* rows = nullptr;  // [num_rows]
  const void* weight = nullptr;        // [width]; null: ones
  const void* bias = nullptr;          // [width]
  DType weight_dtype = DType::kFloat32;
  float epsilon = 1e-5f;
  void* y = nullptr;  // [num_rows, width]
  DType y_dtype = DType::kFloat32;

  friend bool operator==(const NormParams&, const NormParams&) = default;
};

// Per-head RMS norm of q and k (Qwen3), rotary embedding, and the write of k and v into the cache.
struct RopeAndCacheParams {
  std::int64_t num_tokens = 0;
  std::int64_t num_heads = 0;
  const void* qkv = nullptr;  // [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]
  DType qkv_dtype = DType::kFloat32;
  const std::int32_t* positions = nullptr;  // [num_tokens]
  const std::int64_t* slots = nullptr;      // [num_tokens]; -1: do not store
  const float* cos_sin = nullptr;  // [positions, rotary_dim]: cosines, then sines; null: no rope
  std::int64_t rotary_dim = 0;     // dimensions that turn, pairs (i, i + rotary_dim / 2)
  const void* q_norm = nullptr;    // [head_dim]
  const void* k_norm = nullptr;    // [head_dim]
  DType norm_dtype = DType::kFloat32;
  float epsilon = 1e-6f;
  void* query = nullptr;  // out: [num_tokens, num_heads, head_dim]
  DType query_dtype = DType::kFloat32;
  KvCacheView cache = {};
  std::int64_t layer = 0;

  friend bool operator==(const RopeAndCacheParams&, const RopeAndCacheParams&) = default;
};

// Causal attention of every span in the batch over its sequence's cached tokens, the span's own
// included: query i of a span sees positions (p - sliding_window, p], p = context_len + i.
// Method: online softmax, Milakov & Gimelshein 2018; paged KV, Kwon et al. 2023, section 4.
struct PagedAttentionParams {
  std::int64_t num_heads = 0;
  const void* query = nullptr;  // [num_tokens, num_heads, head_dim]
  DType query_dtype = DType::kFloat32;
  KvCacheView cache = {};
  std::int64_t layer = 0;
  float scale = 1.0f;
  std::int32_t sliding_window = 0;  // 0: none
  float softcap = 0.0f;             // 0: none; else scores become softcap * tanh(score / softcap)
  void* out = nullptr;              // [num_tokens, num_heads, head_dim]
  DType out_dtype = DType::kFloat32;

  friend bool operator==(const PagedAttentionParams&, const PagedAttentionParams&) = default;
};

// y = activation(gate) * up, element by element.
struct GatedActivationParams {
  std::int64_t num_rows = 0;
  std::int64_t width = 0;
  const void* gate_up = nullptr;  // [num_rows, 2 * width]: gate, then up
  DType dtype = DType::kFloat32;
  Activation activation = Activation::kSilu;
  void* y = nullptr;  // [num_rows, width]
  DType y_dtype = DType::kFloat32;

  friend bool operator==(const GatedActivationParams&, const GatedActivationParams&) = default;
};

}  // namespace pagedcore
