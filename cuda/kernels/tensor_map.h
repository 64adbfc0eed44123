#pragma once

#include <cuda.h>

#include "pagedcore/ops.h"

namespace pagedcore::cuda {

// Describes the cache to Hopper's tensor copies: boxes of [rows, 64] elements of 16 bits, of
// coordinates (element of a row, token of a block, (layer * 2 + kv) * num_kv_heads + head, block).
// In shared memory they are tiles as wgmma.cuh describes them. Throws DeviceError.
CUtensorMap describe_cache(const KvCacheView& cache, int rows);

}  // namespace pagedcore::cuda
