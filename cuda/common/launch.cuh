#pragma once

#include <nv/target>

#include "cuda/common/launch.h"

namespace pagedcore::cuda {

// The two halves of a programmatic launch. Every thread of a kernel that launch_dependent() starts
// calls await_inputs() before it touches what an earlier kernel of the step wrote or reads; until
// then only weights, what stage() uploaded and what the cache held before the step may be read.
// allow_next() lets the next kernel start.
__device__ inline void await_inputs() {
  NV_IF_TARGET(NV_PROVIDES_SM_90, (asm volatile("griddepcontrol.wait;" :: : "memory");))
}
__device__ inline void allow_next() {
  NV_IF_TARGET(NV_PROVIDES_SM_90,
               (asm volatile("griddepcontrol.launch_dependents;" :: : "memory");))
}

// Launches a kernel that calls await_inputs(), in clusters of `cluster` thread blocks; throws
// DeviceError.
template <typename... Params, typename... Args>
void launch_dependent_clusters(int cluster, void (*kernel)(Params...), dim3 grid, int threads,
                               std::int64_t shared_bytes, cudaStream_t stream,
                               const Args&... args) {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (has_programmatic_launch()) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  }
  PAGEDCORE_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, Params(args)...));
}
template <typename... Params, typename... Args>
void launch_dependent(void (*kernel)(Params...), dim3 grid, int threads, std::int64_t shared_bytes,
                      cudaStream_t stream, const Args&... args) {
  launch_dependent_clusters(1, kernel, grid, threads, shared_bytes, stream, args...);
}

}  // namespace pagedcore::cuda
