#pragma once

#include <cstdint>

// What kernels presume of a processor's caches.
namespace pagedcore::cpu::PAGEDCORE_ISA {

inline constexpr std::int64_t kLineBytes = 64;
// How far ahead of a stream of weights its lines are fetched into L2, where a processor's own
// fetching stops at the end of a page.
inline constexpr std::int64_t kStreamAheadBytes = 8192;

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
