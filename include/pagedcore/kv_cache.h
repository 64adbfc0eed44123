#pragma once

#include <cstdint>

#include "pagedcore/dtype.h"

namespace pagedcore {

// The KV cache in a backend's memory. A block is one contiguous extent over all layers:
// [num_blocks][num_layers][2 (K, V)][num_kv_heads][block_size][row_stride()]. A row is head_dim
// elements; int8 has the float32 behind them that times an element is the value.
struct KvCacheView {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t num_blocks = 0;
  std::int64_t num_layers = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t block_size = 0;
  std::int64_t head_dim = 0;
  float k_scale = 1.0f;  // stored value times scale is the value; not 1 for fp8 only
  float v_scale = 1.0f;

  // Strides in elements.
  constexpr std::int64_t row_stride() const { return head_dim + row_scale_bytes(); }
  constexpr std::int64_t head_stride() const { return block_size * row_stride(); }
  constexpr std::int64_t kv_stride() const { return num_kv_heads * head_stride(); }
  constexpr std::int64_t layer_stride() const { return 2 * kv_stride(); }
  constexpr std::int64_t block_stride() const { return num_layers * layer_stride(); }
  constexpr std::int64_t row_scale_bytes() const { return dtype == DType::kInt8 ? 4 : 0; }
  std::int64_t block_bytes() const { return block_stride() * dtype_bits(dtype) / 8; }

  friend bool operator==(const KvCacheView&, const KvCacheView&) = default;
};

}  // namespace pagedcore
