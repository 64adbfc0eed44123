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

void* Scratch::reserve(std::int64_t bytes) {
  if (bytes > buffer_.bytes()) {
    buffer_ = Buffer();  // frees first, so that both need not fit at once
    buffer_ = Buffer(backend_, bytes);
  }
  return buffer_.data();
}

void PinnedScratch::release() {
  if (data_ != nullptr) cudaFreeHost(data_);
  data_ = nullptr;
  bytes_ = 0;
}

void* PinnedScratch::reserve(std::int64_t bytes) {
  if (bytes <= bytes_) return data_;
  PAGEDCORE_CUDA_CHECK(cudaDeviceSynchronize());
  release();
  PAGEDCORE_CUDA_CHECK(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault));
  bytes_ = bytes;
  return data_;
}

}  // namespace pagedcore::cuda
