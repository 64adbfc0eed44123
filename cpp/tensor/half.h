#pragma once

#include <cstdint>

namespace pagedcore {

// The 16-bit floats as they lie in memory.
struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

// Exact widenings, and narrowings to the nearest value, ties to even; NaN stays NaN. For code that
// converts a few numbers: kernels have vector versions of their own.
float to_float(BFloat16 value);
float to_float(Float16 value);
BFloat16 to_bfloat16(float value);
Float16 to_float16(float value);

}  // namespace pagedcore
