#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <utility>

#include "cuda/common/check.h"
#include "pagedcore/backend.h"

namespace pagedcore::cuda {

// A CUDA handle that is destroyed with its owner.
template <typename Handle, cudaError_t (*kDestroy)(Handle)>
class Owned {
 public:
  Owned() = default;
  ~Owned() { reset(); }
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  void reset() {
    if (handle_ != nullptr) kDestroy(std::exchange(handle_, nullptr));
  }
  Handle get() const { return handle_; }
  Handle* put() { return &handle_; }

 private:
  Handle handle_ = nullptr;
};

using Stream = Owned<cudaStream_t, cudaStreamDestroy>;
using Event = Owned<cudaEvent_t, cudaEventDestroy>;
using GraphExec = Owned<cudaGraphExec_t, cudaGraphExecDestroy>;

// Device memory that grows when more is asked for than ever before. Growing waits for the device
// and loses the content.
class Scratch {
 public:
  explicit Scratch(Backend& backend) : backend_(backend) {}

  // At least `bytes`, 256-byte aligned. Throws OutOfMemory.
  void* reserve(std::int64_t bytes);
  std::int64_t bytes() const { return buffer_.bytes(); }
  template <typename T>
  T* as() const {
    return buffer_.as<T>();
  }

 private:
  Backend& backend_;
  Buffer buffer_;
};

// The same of pinned host memory.
class PinnedScratch {
 public:
  PinnedScratch() = default;
  ~PinnedScratch() { release(); }
  PinnedScratch(const PinnedScratch&) = delete;
  PinnedScratch& operator=(const PinnedScratch&) = delete;

  void* reserve(std::int64_t bytes);
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void release();
  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

}  // namespace pagedcore::cuda
