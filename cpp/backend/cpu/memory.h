#pragma once

#include <cstdint>

namespace pagedcore::cpu {

// Memory aligned to 64 bytes, and from 2 MiB on to that, with huge pages asked for. Its pages
// count when first touched. Throws OutOfMemory.
void* allocate_aligned(std::int64_t bytes);
void free_aligned(void* data) noexcept;

}  // namespace pagedcore::cpu
