#pragma once

#include <algorithm>

#include "cuda/kernels/decode_attention.cuh"

namespace pagedcore::cuda {

template <typename KV, int kHeadDim>
__global__ void __launch_bounds__(DecodeAttention<KV, kHeadDim>::kThreads,
                                  DecodeAttention<KV, kHeadDim>::kBlocksPerSm)
    decode_attention_kernel(const __grid_constant__ AttentionArgs args, int stages) {
  extern __shared__ __align__(128) char shared[];
  DecodeAttention<KV, kHeadDim>::run(args, stages, shared);
}

template <typename KV, int kHeadDim>
void launch_decode_attention_as(const AttentionArgs& args, std::int64_t max_items,
                                cudaStream_t stream) {
  using Kernel = DecodeAttention<KV, kHeadDim>;
  const auto kernel = decode_attention_kernel<KV, kHeadDim>;
  const std::int64_t group = args.op.num_heads / args.op.cache.num_kv_heads;
  const std::int64_t num_tiles = args.op.cache.num_kv_heads * ceil_div(group, Kernel::kRows);
  // Thread blocks a processor, if it had its share of all; fewer have deeper pipelines.
  const std::int64_t share = ceil_div(max_items * num_tiles, args.num_sms);
  int stages = share <= 2 ? Kernel::stages_for(static_cast<int>(share)) : Kernel::kStages;
  if (Kernel::shared_bytes(stages) > args.max_shared_bytes) stages = Kernel::kStages;
  const int shared_bytes = Kernel::shared_bytes(stages);
  PAGEDCORE_CUDA_CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
      std::min(Kernel::shared_bytes(Kernel::stages_for(1)), args.max_shared_bytes)));
  int blocks_a_sm = 0;
  PAGEDCORE_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &blocks_a_sm, kernel, Kernel::kThreads, shared_bytes));
  // All thread blocks are on the device at once: one may await what others compute.
  const std::int64_t at_once = std::max<std::int64_t>(1, args.num_sms * blocks_a_sm / num_tiles);
  const dim3 grid(static_cast<unsigned>(num_tiles),
                  static_cast<unsigned>(std::min(max_items, at_once)));
  launch_dependent(kernel, grid, Kernel::kThreads, shared_bytes, stream, args, stages);
}

}  // namespace pagedcore::cuda
