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
  const std::int64_t num_tiles = args.op.cache.num_kv_heads * ceil_div(group, Kernel::kRows);
  // All thread blocks are on the device at once: one may await what others compute.
  const std::int64_t at_once = std::max<std::int64_t>(1, args.num_sms * blocks_a_sm / num_tiles);
  const dim3 grid(static_cast<unsigned>(num_tiles),
                  static_cast<unsigned>(std::min(max_items, at_once)));
  launch_dependent(kernel, grid, Kernel::kThreads, Kernel::kSharedBytes, stream, args);
}

}  // namespace pagedcore::cuda
