#pragma once

#include <nv/target>

#include "cuda/kernels/prefill_attention.cuh"
#include "cuda/kernels/prefill_attention_sm90.cuh"
#include "cuda/kernels/tensor_map.h"

namespace pagedcore::cuda {

template <typename KV, int kHeadDim>
__global__ void __launch_bounds__(PrefillAttention<KV, kHeadDim>::kThreads)
    prefill_attention_kernel(const __grid_constant__ AttentionArgs args) {
  extern __shared__ __align__(128) char shared[];
  PrefillAttention<KV, kHeadDim>::run(args, shared);
}

template <typename KV, int kHeadDim>
__global__ void __launch_bounds__(PrefillAttentionSm90<KV, kHeadDim>::kThreads, 1)
    prefill_attention_sm90_kernel(const __grid_constant__ AttentionArgs args,
                                  const __grid_constant__ CUtensorMap map,
                                  const std::int32_t num_items) {
  extern __shared__ __align__(128) char shared[];
  NV_IF_TARGET(NV_HAS_FEATURE_SM_90a,
               (PrefillAttentionSm90<KV, kHeadDim>::run(args, map, num_items, shared);))
}

// Hopper's kernel where it serves the cache, else the one that every device runs.
template <typename KV, int kHeadDim>
void launch_prefill_attention_as(const AttentionArgs& args, std::int64_t num_tiles,
                                 cudaStream_t stream) {
  const KvCacheView& cache = args.op.cache;
  if constexpr (PrefillAttentionSm90<KV, kHeadDim>::kServes) {
    const int box_tokens = prefill_box_tokens(static_cast<int>(cache.block_size));
    if (args.sm_major == 9 && box_tokens > 0) {
      using Kernel = PrefillAttentionSm90<KV, kHeadDim>;
      const auto kernel = prefill_attention_sm90_kernel<KV, kHeadDim>;
      PAGEDCORE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                Kernel::kSharedBytes));
      const auto num_items = static_cast<std::int32_t>(num_tiles * cache.num_kv_heads);
      const dim3 grid(static_cast<unsigned>(num_items < args.num_sms ? num_items : args.num_sms));
      return launch_dependent(kernel, grid, Kernel::kThreads, Kernel::kSharedBytes, stream, args,
                              describe_cache(cache, box_tokens, 1), num_items);
    }
  }
  using Kernel = PrefillAttention<KV, kHeadDim>;
  const auto kernel = prefill_attention_kernel<KV, kHeadDim>;
  PAGEDCORE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            Kernel::kSharedBytes));
  const dim3 grid(static_cast<unsigned>(cache.num_kv_heads), static_cast<unsigned>(num_tiles));
  launch_dependent(kernel, grid, Kernel::kThreads, Kernel::kSharedBytes, stream, args);
}

}  // namespace pagedcore::cuda
