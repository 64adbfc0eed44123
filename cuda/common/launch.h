#pragma once

#include <cstdint>

#include "cuda/common/check.h"

namespace pagedcore::cuda {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Whether every row of `width` elements after a 16-byte aligned `p` can be accessed in vectors.
inline bool rows_allow_vectors(const void* p, std::int64_t width) {
  return width % 8 == 0 && reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
}

// Whether the current device starts kernels before those they depend on are done (sm_90).
bool has_programmatic_launch();

}  // namespace pagedcore::cuda
