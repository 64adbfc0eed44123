#pragma once

#include <cstdint>

#include "pagedcore/export.h"

namespace pagedcore::cpu {

// Memory aligned to 64 bytes, and from 2 MiB on to that, with huge pages asked for. Its pages
// count when first touched. Throws OutOfMemory.
void* allocate_aligned(std::int64_t bytes);
void free_aligned(void* data) noexcept;

// Maps the pages of a file's memory at once that its readers would map a few at a time. Kernels
// before Linux 5.14 leave that to the readers.
PAGEDCORE_API void fault_in(const void* data, std::int64_t bytes) noexcept;

}  // namespace pagedcore::cpu
