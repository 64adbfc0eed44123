#include "cuda/backend/upload_ring.h"

namespace pagedcore::cuda {

UploadRing::UploadRing() {
  for (Part& part : parts_) {
    PAGEDCORE_CUDA_CHECK(cudaEventCreateWithFlags(part.copied.put(), cudaEventDisableTiming));
  }
}

char* UploadRing::begin(std::int64_t bytes) {
  current_ ^= 1;
  Part& part = parts_[current_];
  PAGEDCORE_CUDA_CHECK(cudaEventSynchronize(part.copied.get()));
  return static_cast<char*>(part.memory.reserve(bytes));
}

void UploadRing::submit(void* device_dst, std::int64_t bytes, cudaStream_t stream) {
  Part& part = parts_[current_];
  PAGEDCORE_CUDA_CHECK(
      cudaMemcpyAsync(device_dst, part.memory.as<char>(), bytes, cudaMemcpyHostToDevice, stream));
  PAGEDCORE_CUDA_CHECK(cudaEventRecord(part.copied.get(), stream));
}

}  // namespace pagedcore::cuda
