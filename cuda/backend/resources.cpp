#include "cuda/backend/resources.h"

#include "cuda/common/launch.h"
#include "pagedcore/error.h"

namespace pagedcore::cuda {

void throw_cuda_error(cudaError_t error, const char* call) {
  cudaGetLastError();  // clears what is not sticky
  const std::string message =
      detail::concat(cudaGetErrorName(error), ": ", cudaGetErrorString(error), ", from ", call);
  if (error == cudaErrorMemoryAllocation) throw OutOfMemory(message);
  throw DeviceError(message);
}

bool has_programmatic_launch() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= 9;
}

Scratch::~Scratch() { release(); }

void Scratch::release() {
  if (data_ != nullptr) kind_ == Kind::kDevice ? cudaFree(data_) : cudaFreeHost(data_);
  data_ = nullptr;
  bytes_ = 0;
}

void* Scratch::reserve(std::int64_t bytes) {
  if (bytes <= bytes_) return data_;
  PAGEDCORE_CUDA_CHECK(cudaDeviceSynchronize());
  release();
  if (kind_ == Kind::kDevice) {
    PAGEDCORE_CUDA_CHECK(cudaMalloc(&data_, bytes));
  } else {
    PAGEDCORE_CUDA_CHECK(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault));
  }
  bytes_ = bytes;
  return data_;
}

}  // namespace pagedcore::cuda
