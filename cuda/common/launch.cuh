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

// Launches a kernel that calls await_inputs(); throws DeviceError.
template <typename... Params, typename... Args>
void launch_dependent(void (*kernel)(Params...), dim3 grid, int threads, std::int64_t shared_bytes,
                      cudaStream_t stream, const Args&... args) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = has_programmatic_launch() ? 1 : 0;
  PAGEDCORE_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, Params(args)...));
}

}  // namespace pagedcore::cuda
