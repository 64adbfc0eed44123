#pragma once

#include <cuda.h>

#include <cstdint>

#include "pagedcore/ops.h"

namespace pagedcore::cuda {

// Describes the cache to Hopper's tensor copies: boxes [kvs][tokens] of 128 bytes, of coordinates
// (two bytes of a row, token of a block, K or V, (block * num_layers + layer) * 2 * num_kv_heads +
// head). In shared memory they are tiles as wgmma.cuh describes them. Throws DeviceError.
CUtensorMap describe_cache(const KvCacheView& cache, int tokens, int kvs);

// Likewise a matrix [rows, columns] of 16-bit elements, its rows `stride` apart: boxes of
// [box_rows, 64], of coordinates (column, row). REQUIRES: 16-byte aligned rows.
CUtensorMap describe_matrix(const void* data, std::int64_t rows, std::int64_t columns,
                            std::int64_t stride, int box_rows);

}  // namespace pagedcore::cuda
