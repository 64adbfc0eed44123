#pragma once

#include <span>

#include "cpp/backend/cpu/kernels.h"

namespace pagedcore::cpu {

// One instruction set of this build and whether this processor runs it.
struct Isa {
  const Kernels* kernels;
  bool supported;
};

// The instruction sets of this build, the best first. arch/ has one definition for each
// architecture; CMake picks it.
std::span<const Isa> all_isas();

// Whether the processor itself fetches a stream from memory only to the end of each page of 4 KiB,
// so that what lies behind is better prefetched. arch/ says.
bool streams_stop_at_pages();

}  // namespace pagedcore::cpu
