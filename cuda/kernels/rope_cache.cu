#include "cuda/common/launch.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/kernels.h"
#include "pagedcore/error.h"

namespace pagedcore::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxHeadDim = 512;

// One warp per (token, head of q, k or v): per-head RMS norm, rotation, and the store to the query
// or to the cache's slot. Grid (num_tokens, heads / kWarps); block kWarps * 32. Reads qkv once.
// Method: rotary embedding, Su et al. 2021, pairs (i, i + rotary_dim / 2).
// kElements: of one head, a lane.
template <int kElements>
__global__ void rope_and_cache_kernel(const __grid_constant__ RopeAndCacheParams p) {
  __shared__ float shared[kWarps][kElements * 32];
  allow_next();
  const int lane = threadIdx.x % 32;
  const std::int64_t num_kv_heads = p.cache.num_kv_heads;
  const std::int64_t num_heads = p.num_heads + 2 * num_kv_heads;
  const std::int64_t head = std::int64_t{blockIdx.y} * kWarps + threadIdx.x / 32;
  if (head >= num_heads) return await_inputs();
  const std::int64_t token = blockIdx.x;
  const int head_dim = static_cast<int>(p.cache.head_dim);
  const bool is_query = head < p.num_heads;
  const bool is_value = head >= p.num_heads + num_kv_heads;
  const std::int64_t slot = p.slots[token];
  // Positions and slots are the step's inputs, the table is the model's: all there before qkv is.
  const int half = static_cast<int>(p.rotary_dim) / 2;
  const bool turns = p.cos_sin != nullptr && !is_value;
  float cosine[kElements], sine[kElements];
  if (turns) {
    const float* cosines = p.cos_sin + p.positions[token] * p.rotary_dim;
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      const int i = lane + 32 * j;
      const int pair = min(i < half ? i : i - half, half - 1);
      cosine[j] = cosines[pair];
      sine[j] = cosines[half + pair];
    }
  }
  await_inputs();
  if (!is_query && slot < 0) return;

  float v[kElements];
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    const int i = lane + 32 * j;
    v[j] = load1(p.qkv, p.qkv_dtype, (token * num_heads + head) * head_dim + min(i, head_dim - 1));
    if (i >= head_dim) v[j] = 0.0f;
  }
  const void* norm = is_value ? nullptr : is_query ? p.q_norm : p.k_norm;
  if (norm != nullptr) {
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < kElements; ++j) squares += v[j] * v[j];
    const float inverse = 1.0f / sqrtf(warp_sum(squares) / head_dim + p.epsilon);
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      const int i = lane + 32 * j;
      if (i < head_dim) v[j] = v[j] * inverse * load1(norm, p.norm_dtype, i);
    }
  }
  if (turns) {
    float* row = shared[threadIdx.x / 32];
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      if (lane + 32 * j < head_dim) row[lane + 32 * j] = v[j];
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      const int i = lane + 32 * j;
      if (i < half) {
        v[j] = v[j] * cosine[j] - row[i + half] * sine[j];
      } else if (i < 2 * half) {
        v[j] = v[j] * cosine[j] + row[i - half] * sine[j];
      }
    }
  }

  void* out = p.query;
  DType dtype = p.query_dtype;
  std::int64_t at = (token * p.num_heads + head) * head_dim;
  float factor = 1.0f;
  if (!is_query) {
    const std::int64_t kv_head = (head - p.num_heads) % num_kv_heads;
    out = p.cache.data;
    dtype = p.cache.dtype;
    at = slot / p.cache.block_size * p.cache.block_stride() + p.layer * p.cache.layer_stride() +
         (is_value ? p.cache.kv_stride() : 0) + kv_head * p.cache.head_stride() +
         slot % p.cache.block_size * head_dim;
    factor = 1.0f / (is_value ? p.cache.v_scale : p.cache.k_scale);
  }
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    const int i = lane + 32 * j;
    if (i < head_dim) store1(out, dtype, at + i, v[j] * factor);
  }
}

}  // namespace

void launch_rope_and_cache(const RopeAndCacheParams& p, cudaStream_t stream) {
  PAGEDCORE_REQUIRE(p.cache.head_dim <= kMaxHeadDim, "head_dim must be at most ", kMaxHeadDim,
                    " on CUDA, got ", p.cache.head_dim);
  const std::int64_t num_heads = p.num_heads + 2 * p.cache.num_kv_heads;
  const dim3 grid(static_cast<unsigned>(p.num_tokens),
                  static_cast<unsigned>(ceil_div(num_heads, kWarps)));
  const auto kernel = p.cache.head_dim <= 64    ? rope_and_cache_kernel<2>
                      : p.cache.head_dim <= 128 ? rope_and_cache_kernel<4>
                      : p.cache.head_dim <= 256 ? rope_and_cache_kernel<8>
                                                : rope_and_cache_kernel<16>;
  launch_dependent(kernel, grid, kWarps * 32, 0, stream, p);
}

}  // namespace pagedcore::cuda
