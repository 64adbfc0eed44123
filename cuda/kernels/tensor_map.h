#pragma once

#include <cuda.h>

#include <cstdint>

#include "pagedcore/ops.h"

namespace pagedcore::cuda {

// Describes the cache to Hopper's tensor copies: boxes of [rows, 64] elements of 16 bits, of
// coordinates (element of a row, token of a block, (layer * 2 + kv) * num_kv_heads + head, block).
// In shared memory they are tiles as wgmma.cuh describes them. Throws DeviceError.
CUtensorMap describe_cache(const KvCacheView& cache, int rows);

// Likewise a matrix [rows, columns] of 16-bit elements, its rows `stride` apart: boxes of
// [box_rows, 64], of coordinates (column, row). REQUIRES: 16-byte aligned rows.
CUtensorMap describe_matrix(const void* data, std::int64_t rows, std::int64_t columns,
                            std::int64_t stride, int box_rows);

}  // namespace pagedcore::cuda
