#pragma once

#include <array>
#include <cstdint>

#include "cuda/backend/resources.h"

namespace pagedcore::cuda {

// Pinned host memory for small uploads, twofold: one part is filled while the other's copy runs.
class UploadRing {
 public:
  UploadRing();

  // The next part, `bytes` of it, once its last copy is done.
  char* begin(std::int64_t bytes);
  // Copies the first `bytes` of the part that begin() gave to `device_dst`.
  void submit(void* device_dst, std::int64_t bytes, cudaStream_t stream);

 private:
  struct Part {
    PinnedScratch memory;
    Event copied;
  };
  std::array<Part, 2> parts_;
  int current_ = 0;
};

}  // namespace pagedcore::cuda
