#pragma once

#include <cstddef>
#include <cstdint>

namespace pagedcore::cpu {

// Scratch memory that kernels share, one at a time. It grows to the largest size asked for and
// stays, so that after the first steps no op allocates.
class Workspace {
 public:
  Workspace() = default;
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // At least `bytes`, 64-byte aligned, of unspecified content, valid until the next call.
  // Throws OutOfMemory.
  std::byte* reserve(std::int64_t bytes);
  std::int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

}  // namespace pagedcore::cpu
