#include "cpp/backend/cpu/workspace.h"

#include <algorithm>

#include "cpp/backend/cpu/memory.h"

namespace pagedcore::cpu {

Workspace::~Workspace() { free_aligned(data_); }

std::byte* Workspace::reserve(std::int64_t bytes) {
  if (bytes > bytes_) {
    const std::int64_t grown = std::max(bytes, bytes_ + bytes_ / 2);
    void* data = allocate_aligned(grown);
    free_aligned(data_);
    data_ = static_cast<std::byte*>(data);
    bytes_ = grown;
  }
  return data_;
}

}  // namespace pagedcore::cpu
