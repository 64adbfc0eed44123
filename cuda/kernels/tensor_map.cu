#include "cuda/kernels/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "cuda/common/check.h"
#include "pagedcore/error.h"

namespace pagedcore::cuda {
namespace {

// The driver's function, found at run time: nothing here links the driver.
PFN_cuTensorMapEncodeTiled_v12000 find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  PAGEDCORE_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                        cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess) {
    throw DeviceError("the driver has no cuTensorMapEncodeTiled");
  }
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

cuuint64_t count(std::int64_t n) { return static_cast<cuuint64_t>(n); }

// Sizes in elements, strides of all dimensions but the first in bytes.
template <int kRank>
CUtensorMap describe(const void* data, const cuuint64_t (&sizes)[kRank],
                     const cuuint64_t (&strides)[kRank - 1], const cuuint32_t (&box)[kRank]) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = find_encode();
  cuuint32_t steps[kRank];
  for (cuuint32_t& step : steps) step = 1;
  CUtensorMap map;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, kRank, const_cast<void*>(data), sizes, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw DeviceError(detail::concat("cuTensorMapEncodeTiled failed: ", static_cast<int>(result)));
  }
  return map;
}

}  // namespace

CUtensorMap describe_cache(const KvCacheView& cache, int tokens, int kvs) {
  const std::int64_t element_bytes = dtype_bits(cache.dtype) / 8;
  return describe<4>(
      cache.data,
      {count(cache.head_dim * element_bytes / 2), count(cache.block_size), 2,
       count(cache.num_blocks * cache.num_layers * 2 * cache.num_kv_heads)},
      {count(cache.head_dim * element_bytes), count(cache.kv_stride() * element_bytes),
       count(cache.head_stride() * element_bytes)},
      {64, static_cast<cuuint32_t>(tokens), static_cast<cuuint32_t>(kvs), 1});
}

CUtensorMap describe_matrix(const void* data, std::int64_t rows, std::int64_t columns,
                            std::int64_t stride, int box_rows) {
  return describe<2>(data, {count(columns), count(rows)}, {count(stride * 2)},
                     {64, static_cast<cuuint32_t>(box_rows)});
}

}  // namespace pagedcore::cuda
