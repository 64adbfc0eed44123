#pragma once

#include <cuda_runtime_api.h>

namespace pagedcore::cuda {

// Throws OutOfMemory for a failed allocation, else DeviceError with name, text and call.
[[noreturn]] void throw_cuda_error(cudaError_t error, const char* call);

}  // namespace pagedcore::cuda

#define PAGEDCORE_CUDA_CHECK(call)                        \
  do {                                                    \
    const cudaError_t error_ = (call);                    \
    if (error_ != cudaSuccess) [[unlikely]]               \
      ::pagedcore::cuda::throw_cuda_error(error_, #call); \
  } while (false)
