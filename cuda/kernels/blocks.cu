#include "cuda/common/launch.cuh"
#include "cuda/kernels/kernels.h"

namespace pagedcore::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;  // 16-byte copies in flight a thread
constexpr std::int64_t kTileBytes = std::int64_t{kThreads} * kUnroll * 16;

// One thread block per (tile of kTileBytes, copy). Moves 2 * block_bytes a copy.
__global__ void copy_blocks_kernel(char* data, std::int64_t block_bytes, const BlockCopy* copies,
                                   bool vec) {
  const BlockCopy copy = copies[blockIdx.y];
  const char* src = data + copy.src * block_bytes;
  char* dst = data + copy.dst * block_bytes;
  const std::int64_t start = blockIdx.x * kTileBytes + threadIdx.x * 16;
  if (!vec) {
    for (int j = 0; j < kUnroll; ++j) {
      const std::int64_t i = start + std::int64_t{j} * kThreads * 16;
      for (std::int64_t k = i; k < min(i + 16, block_bytes); ++k) dst[k] = src[k];
    }
    return;
  }
  uint4 v[kUnroll];
#pragma unroll
  for (int j = 0; j < kUnroll; ++j) {
    const std::int64_t i = start + std::int64_t{j} * kThreads * 16;
    if (i + 16 <= block_bytes) v[j] = *reinterpret_cast<const uint4*>(src + i);
  }
#pragma unroll
  for (int j = 0; j < kUnroll; ++j) {
    const std::int64_t i = start + std::int64_t{j} * kThreads * 16;
    if (i + 16 <= block_bytes) *reinterpret_cast<uint4*>(dst + i) = v[j];
  }
}

__global__ void update_tables_kernel(BlockId* tables, std::int64_t table_stride,
                                     const TableUpdate* updates, std::int64_t num_updates) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= num_updates) return;
  const TableUpdate u = updates[i];
  tables[u.row * table_stride + u.index] = u.block;
}

}  // namespace

void launch_copy_blocks(const KvCacheView& cache, const BlockCopy* copies, std::int64_t num_copies,
                        cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(cache.block_bytes(), kTileBytes)),
                  static_cast<unsigned>(num_copies));
  copy_blocks_kernel<<<grid, kThreads, 0, stream>>>(
      static_cast<char*>(cache.data), cache.block_bytes(), copies,
      rows_allow_vectors(cache.data, cache.block_bytes() / 2));
  PAGEDCORE_CUDA_CHECK(cudaGetLastError());
}

void launch_update_tables(BlockId* tables, std::int64_t table_stride, const TableUpdate* updates,
                          std::int64_t num_updates, cudaStream_t stream) {
  const auto grid = static_cast<unsigned>(ceil_div(num_updates, kThreads));
  update_tables_kernel<<<grid, kThreads, 0, stream>>>(tables, table_stride, updates, num_updates);
  PAGEDCORE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace pagedcore::cuda
