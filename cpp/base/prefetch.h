#pragma once

#include <cstddef>

namespace pagedcore {

// A forward pass sweeps the caches. A loop over scattered objects asks this many ahead for those
// that it is going to write; about the misses that a core can have under way.
inline constexpr std::size_t kPrefetchAhead = 12;

inline void prefetch_for_write(const void* address) { __builtin_prefetch(address, 1); }

}  // namespace pagedcore
