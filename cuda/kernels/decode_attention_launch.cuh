#pragma once

#include <algorithm>

#include "cuda/kernels/decode_attention.cuh"
#include "cuda/kernels/tensor_map.h"

namespace pagedcore::cuda {

template <typename KV, int kHeadDim>
__global__ void __launch_bounds__(DecodeAttention<KV, kHeadDim>::kThreads,
                                  DecodeAttention<KV, kHeadDim>::kBlocksPerSm)
    decode_attention_kernel(const __grid_constant__ AttentionArgs args,
                            const __grid_constant__ CUtensorMap map, bool tensor, int stages,
                            int most_on_their_way, int at_once) {
  extern __shared__ __align__(128) char shared[];
  DecodeAttention<KV, kHeadDim>::run(args, map, tensor, stages, most_on_their_way, at_once, shared);
}

template <typename KV, int kHeadDim>
void launch_decode_attention_as(const AttentionArgs& args, std::int64_t max_items,
                                cudaStream_t stream) {
  using Kernel = DecodeAttention<KV, kHeadDim>;
  const auto kernel = decode_attention_kernel<KV, kHeadDim>;
  const KvCacheView& cache = args.op.cache;
  const std::int64_t group = args.op.num_heads / cache.num_kv_heads;
  const std::int64_t num_tiles = cache.num_kv_heads * ceil_div(group, Kernel::kHeads);
  const int heads = static_cast<int>(std::min<std::int64_t>(group, Kernel::kHeads));
  // Rings are as deep as fits, so that much is there when the inputs are.
  const bool tensor = args.sm_major == 9 && cache.block_size >= Kernel::kTokens;
  const std::int64_t max_pieces = max_items * kFold;
  const bool alone = max_pieces * num_tiles <= args.num_sms;
  const int share = args.sm_shared_bytes / Kernel::kBlocksPerSm - 1024;
  int stages = alone ? 0 : Kernel::stages_for(std::min(share, args.max_shared_bytes), heads);
  if (stages == 0) stages = Kernel::stages_for(args.max_shared_bytes, heads);
  if (!alone && !tensor && Kernel::kSmallStages) {
    stages = std::min(stages, Kernel::kUnpacedStages);
  }
  const int most_on_their_way = alone ? stages : std::min(stages, Kernel::kOnTheirWay);
  const int shared_bytes = Kernel::shared_bytes(stages, heads);
  PAGEDCORE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            args.max_shared_bytes));
  int blocks_a_sm = 0;
  PAGEDCORE_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &blocks_a_sm, kernel, Kernel::kThreads, shared_bytes));
  // All thread blocks are on the device at once: one may await what others compute.
  const std::int64_t at_once = std::max<std::int64_t>(1, args.num_sms * blocks_a_sm / num_tiles);
  const dim3 grid(static_cast<unsigned>(num_tiles),
                  static_cast<unsigned>(std::min(max_pieces, at_once)));
  const CUtensorMap map = tensor ? describe_cache(cache, Kernel::kTokens, 2) : CUtensorMap{};
  launch_dependent(kernel, grid, Kernel::kThreads, shared_bytes, stream, args, map, tensor, stages,
                   most_on_their_way, alone ? Kernel::kMostAtOnce : Kernel::kAtOnce);
}

}  // namespace pagedcore::cuda
