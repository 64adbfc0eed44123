#include "cuda/common/launch.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/kernels.h"
#include "pagedcore/error.h"

namespace pagedcore::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxHeadDim = 512;

// Neighbours; two begin at an even index of an array that is aligned for that.
template <int kWidth>
__device__ void load(const void* p, DType dtype, std::int64_t i, float (&v)[kWidth]) {
  if constexpr (kWidth == 1) {
    v[0] = load1(p, dtype, i);
  } else if (dtype == DType::kFloat32) {
    const float2 two = *reinterpret_cast<const float2*>(static_cast<const float*>(p) + i);
    v[0] = two.x, v[1] = two.y;
  } else {
    const std::uint32_t raw =
        *reinterpret_cast<const std::uint32_t*>(static_cast<const std::uint16_t*>(p) + i);
    const __half2 half = reinterpret_cast<const __half2&>(raw);
    const bool is_half = dtype == DType::kFloat16;
    v[0] = is_half ? __low2float(half) : __uint_as_float(raw << 16);
    v[1] = is_half ? __high2float(half) : __uint_as_float(raw & 0xffff0000u);
  }
}
template <int kWidth>
__device__ void store(void* p, DType dtype, std::int64_t i, const float (&v)[kWidth]) {
  if (kWidth == 2 && dtype != DType::kFp8E4M3) return store2(p, dtype, i, v[0], v[kWidth - 1]);
#pragma unroll
  for (int w = 0; w < kWidth; ++w) store1(p, dtype, i + w, v[w]);
}

// kLanes lanes per (token, head of q, k or v): per-head RMS norm, rotation, and the store to the
// query or to the cache's slot. At each of its kPlaces in the head's first half a lane has kWidth
// neighbours, and those that they turn with; dimensions that do not turn are paired likewise.
// Grid (num_tokens, heads / heads a block). Reads qkv once.
// Method: rotary embedding, Su et al. 2021, pairs (i, i + rotary_dim / 2).
template <int kLanes, int kPlaces, int kWidth>
__global__ void __launch_bounds__(kThreads)
    rope_and_cache_kernel(const __grid_constant__ RopeAndCacheParams p) {
  allow_next();
  const int lane = threadIdx.x % kLanes;
  const std::int64_t num_kv_heads = p.cache.num_kv_heads;
  const std::int64_t num_heads = p.num_heads + 2 * num_kv_heads;
  const std::int64_t head = blockIdx.y * (kThreads / kLanes) + threadIdx.x / kLanes;
  const std::int64_t token = blockIdx.x;
  const int head_dim = static_cast<int>(p.cache.head_dim);
  const bool is_query = head < p.num_heads;
  const bool is_value = head >= p.num_heads + num_kv_heads;
  const std::int64_t slot = p.slots[token];
  const int turning = p.cos_sin == nullptr ? 0 : static_cast<int>(p.rotary_dim) / 2;
  const int end = head < num_heads ? head_dim / 2 : 0;
  const auto place = [&](int n) { return kWidth * (lane + n * kLanes); };
  const auto low = [&](int n) { return place(n) < turning ? place(n) : turning + place(n); };
  const auto high = [&](int n) {
    return place(n) < turning ? turning + place(n) : head_dim / 2 + place(n);
  };
  // Positions and slots are the step's inputs, the table is the model's: all there before qkv is.
  float cosine[kPlaces][kWidth], sine[kPlaces][kWidth];
#pragma unroll
  for (int n = 0; n < kPlaces; ++n) {
    if (is_value || place(n) >= turning) continue;
    const float* cosines = p.cos_sin + p.positions[token] * p.rotary_dim;
    load(cosines, DType::kFloat32, place(n), cosine[n]);
    load(cosines, DType::kFloat32, turning + place(n), sine[n]);
  }
  await_inputs();

  float x[kPlaces][kWidth] = {}, y[kPlaces][kWidth] = {};
  const std::int64_t from = (token * num_heads + head) * head_dim;
#pragma unroll
  for (int n = 0; n < kPlaces; ++n) {
    if (place(n) >= end) continue;
    load(p.qkv, p.qkv_dtype, from + low(n), x[n]);
    load(p.qkv, p.qkv_dtype, from + high(n), y[n]);
  }
  if (p.q_norm != nullptr || p.k_norm != nullptr) {
    float squares = 0.0f;
#pragma unroll
    for (int n = 0; n < kPlaces; ++n) {
#pragma unroll
      for (int w = 0; w < kWidth; ++w) squares += x[n][w] * x[n][w] + y[n][w] * y[n][w];
    }
#pragma unroll
    for (int d = kLanes / 2; d > 0; d /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, d);
    const float inverse = 1.0f / sqrtf(squares / head_dim + p.epsilon);
    const void* norm = is_value ? nullptr : is_query ? p.q_norm : p.k_norm;
#pragma unroll
    for (int n = 0; n < kPlaces; ++n) {
      if (norm == nullptr || place(n) >= end) continue;
      float a[kWidth], b[kWidth];
      load(norm, p.norm_dtype, low(n), a);
      load(norm, p.norm_dtype, high(n), b);
#pragma unroll
      for (int w = 0; w < kWidth; ++w) x[n][w] *= inverse * a[w], y[n][w] *= inverse * b[w];
    }
  }
  if (!is_query && slot < 0) return;

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
  for (int n = 0; n < kPlaces; ++n) {
    if (place(n) >= end) continue;
    const bool turns = !is_value && place(n) < turning;
#pragma unroll
    for (int w = 0; w < kWidth; ++w) {
      const float a = x[n][w], b = y[n][w];
      x[n][w] = factor * (turns ? a * cosine[n][w] - b * sine[n][w] : a);
      y[n][w] = factor * (turns ? b * cosine[n][w] + a * sine[n][w] : b);
    }
    store(out, dtype, at + low(n), x[n]);
    store(out, dtype, at + high(n), y[n]);
  }
}

bool is_aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 8 == 0; }

}  // namespace

void launch_rope_and_cache(const RopeAndCacheParams& p, cudaStream_t stream) {
  const std::int64_t head_dim = p.cache.head_dim;
  PAGEDCORE_REQUIRE(head_dim <= kMaxHeadDim, "head_dim must be at most ", kMaxHeadDim,
                    " on CUDA, got ", head_dim);
  const std::int64_t num_heads = p.num_heads + 2 * p.cache.num_kv_heads;
  const auto launch = [&](auto kernel, int lanes) {
    const dim3 grid(static_cast<unsigned>(p.num_tokens),
                    static_cast<unsigned>(ceil_div(num_heads, kThreads / lanes)));
    launch_dependent(kernel, grid, kThreads, 0, stream, p);
  };
  const bool in_twos = p.rotary_dim % 4 == 0 && is_aligned(p.qkv) && is_aligned(p.query) &&
                       is_aligned(p.cache.data) && is_aligned(p.cos_sin) && is_aligned(p.q_norm) &&
                       is_aligned(p.k_norm);
  if (!in_twos) return launch(rope_and_cache_kernel<32, kMaxHeadDim / 64, 1>, 32);
  if (head_dim <= 64) return launch(rope_and_cache_kernel<16, 1, 2>, 16);
  if (head_dim <= 128) return launch(rope_and_cache_kernel<32, 1, 2>, 32);
  launch(rope_and_cache_kernel<32, kMaxHeadDim / 128, 2>, 32);
}

}  // namespace pagedcore::cuda
