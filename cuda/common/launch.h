#pragma once

#include <cstdint>

#include "cuda/common/check.h"

namespace pagedcore::cuda {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Whether every row of `width` elements after a 16-byte aligned `p` can be accessed in vectors.
inline bool rows_allow_vectors(const void* p, std::int64_t width) {
  return width % 8 == 0 && reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
}

// Whether the current device starts kernels before those they depend on are done (sm_90).
bool has_programmatic_launch();

#ifdef __CUDACC__

// The two halves of a programmatic launch. Every thread of a kernel that launch_dependent() starts
// calls await_inputs() before it touches what an earlier kernel of the step wrote or reads; until
// then only weights and what stage() uploaded may be read. allow_next() lets the next kernel start.
__device__ inline void await_inputs() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void allow_next() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
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

#endif

}  // namespace pagedcore::cuda
