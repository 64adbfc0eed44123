#pragma once

#include <cstdint>

#include "pagedcore/backend.h"

namespace pagedcore {

// Host memory for swapped blocks; the backend must outlive it.
class HostPool {
 public:
  HostPool(Backend& backend, std::int64_t bytes)
      : backend_(backend), data_(bytes > 0 ? backend.allocate_host(bytes) : nullptr) {}
  ~HostPool() {
    if (data_ != nullptr) backend_.free_host(data_);
  }
  HostPool(const HostPool&) = delete;
  HostPool& operator=(const HostPool&) = delete;

  void* data() const { return data_; }

 private:
  Backend& backend_;
  void* data_;
};

}  // namespace pagedcore
