#include "cuda/common/launch.cuh"
#include "cuda/kernels/attention.cuh"
#include "pagedcore/error.h"

namespace pagedcore::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxHeadDim = 512;
constexpr int kElements = kMaxHeadDim / 32;

// One thread block per (query head, token), any dtype and head_dim, all arithmetic in float32.
// Warp w takes the cached tokens whose position is w modulo kWarps, one at a time; the warps' sums
// are merged in order. Serves float32 caches and head_dims without tensor-core kernels.
__global__ void __launch_bounds__(kWarps * 32)
    simple_attention_kernel(const __grid_constant__ AttentionArgs args) {
  __shared__ float shared[kWarps][kMaxHeadDim];
  __shared__ float2 max_sum[kWarps];
  allow_next();
  await_inputs();
  const PagedAttentionParams& p = args.op;
  const ForwardBatch& b = args.batch;
  const auto token = static_cast<std::int32_t>(blockIdx.y);
  if (token >= args.header->num_tokens) return;
  const std::int64_t head = blockIdx.x;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int head_dim = static_cast<int>(p.cache.head_dim);

  std::int32_t seq = 0;
  for (std::int32_t high = args.header->num_seqs; high - seq > 1;) {
    const std::int32_t middle = (seq + high) / 2;
    (b.query_starts[middle] <= token ? seq : high) = middle;
  }
  const std::int32_t position = b.context_lens[seq] + token - b.query_starts[seq];
  const std::int32_t start = window_start(position, p.sliding_window);
  const BlockId* table = b.block_tables + b.table_rows[seq] * b.table_stride;
  const std::int64_t kv_head = head / (p.num_heads / p.cache.num_kv_heads);
  const std::int64_t layer_base =
      p.layer * p.cache.layer_stride() + kv_head * p.cache.head_stride();
  const std::int64_t query_base = (token * p.num_heads + head) * head_dim;

  float q[kElements], out[kElements] = {};
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    const int i = lane + 32 * j;
    q[j] = i < head_dim ? load1(p.query, p.query_dtype, query_base + i) : 0.0f;
  }
  float max = kNegativeInfinity, sum = 0.0f;
  for (std::int32_t t = start / kWarps * kWarps + warp; t <= position; t += kWarps) {
    if (t < start) continue;
    const std::int64_t block = table[t / p.cache.block_size];
    const std::int64_t at =
        block * p.cache.block_stride() + layer_base + t % p.cache.block_size * head_dim;
    float s = 0.0f;
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      const int i = lane + 32 * j;
      if (i < head_dim) s += q[j] * load1(p.cache.data, p.cache.dtype, at + i);
    }
    s = warp_sum(s) * (p.scale * p.cache.k_scale * kLog2E);
    if (p.softcap != 0.0f) s = p.softcap * kLog2E * tanhf(s / (p.softcap * kLog2E));
    const float max_new = fmaxf(max, s);
    const float keep = exp2f(max - max_new), weight = exp2f(s - max_new);
    max = max_new;
    sum = sum * keep + weight;
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      const int i = lane + 32 * j;
      if (i < head_dim) {
        const float v = load1(p.cache.data, p.cache.dtype, at + p.cache.kv_stride() + i);
        out[j] = out[j] * keep + weight * v;
      }
    }
  }
  if (lane == 0) max_sum[warp] = make_float2(max, sum);
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    if (lane + 32 * j < head_dim) shared[warp][lane + 32 * j] = out[j];
  }
  __syncthreads();
  float max_all = kNegativeInfinity;
  for (int w = 0; w < kWarps; ++w) max_all = fmaxf(max_all, max_sum[w].x);
  for (int i = threadIdx.x; i < head_dim; i += kWarps * 32) {
    float total = 0.0f, o = 0.0f;
    for (int w = 0; w < kWarps; ++w) {
      const float factor = exp2f(max_sum[w].x - max_all);
      total += max_sum[w].y * factor;
      o += shared[w][i] * factor;
    }
    store1(p.out, p.out_dtype, query_base + i, o / total * p.cache.v_scale);
  }
}

}  // namespace

void launch_simple_attention(const AttentionArgs& args, cudaStream_t stream) {
  PAGEDCORE_REQUIRE(args.op.cache.head_dim <= kMaxHeadDim, "head_dim must be at most ", kMaxHeadDim,
                    " on CUDA, got ", args.op.cache.head_dim);
  const dim3 grid(static_cast<unsigned>(args.op.num_heads),
                  static_cast<unsigned>(args.batch.num_tokens));
  launch_dependent(simple_attention_kernel, grid, kWarps * 32, 0, stream, args);
}

}  // namespace pagedcore::cuda
