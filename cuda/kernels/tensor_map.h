#pragma once

#include <cuda.h>

#include "pagedcore/ops.h"

namespace pagedcore::cuda {

// Describes the cache to Hopper's tensor copies: boxes [kvs][tokens] of 128 bytes, of coordinates
// (two bytes of a row, token of a block, K or V, (block * num_layers + layer) * 2 * num_kv_heads +
// head). In shared memory they are tiles as wgmma.cuh describes them. Throws DeviceError.
CUtensorMap describe_cache(const KvCacheView& cache, int tokens, int kvs);

}  // namespace pagedcore::cuda
