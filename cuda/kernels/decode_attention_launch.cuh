#pragma once

#include <algorithm>

#include "cuda/kernels/decode_attention.cuh"

namespace pagedcore::cuda {

template <typename KV, int kHeadDim>
__global__ void __launch_bounds__(DecodeAttention<KV, kHeadDim>::kThreads,
                                  DecodeAttention<KV, kHeadDim>::kBlocksPerSm)
    decode_attention_kernel(const __grid_constant__ AttentionArgs args) {
  extern __shared__ __align__(128) char shared[];
  DecodeAttention<KV, kHeadDim>::run(args, shared);
}

template <typename KV, int kHeadDim>
void launch_decode_attention_as(const AttentionArgs& args, std::int64_t max_items,
                                cudaStream_t stream) {
  using Kernel = DecodeAttention<KV, kHeadDim>;
  const auto kernel = decode_attention_kernel<KV, kHeadDim>;
  PAGEDCORE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            Kernel::kSharedBytes));
  int blocks_a_sm = 0;
  PAGEDCORE_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &blocks_a_sm, kernel, Kernel::kThreads, Kernel::kSharedBytes));
  const std::int64_t group = args.op.num_heads / args.op.cache.num_kv_heads;
  const std::int64_t num_work =
      max_items * args.op.cache.num_kv_heads * ceil_div(group, Kernel::kRows);
  const std::int64_t grid =
      std::min<std::int64_t>(num_work, args.num_sms * std::max(1, blocks_a_sm));
  launch_dependent(kernel, dim3(static_cast<unsigned>(grid)), Kernel::kThreads,
                   Kernel::kSharedBytes, stream, args);
}

}  // namespace pagedcore::cuda
