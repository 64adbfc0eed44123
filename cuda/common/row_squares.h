#pragma once

#include <cstdint>

namespace pagedcore::cuda {

// By which the norm of a linear op's x is ended, see SplitNorm.
struct RowSquares {
  const float* sums = nullptr;  // [num_rows, ceil(width / SplitNorm::kWidth)]; null: no norm
  std::int64_t width = 0;       // of x
  float epsilon = 0.0f;
};

}  // namespace pagedcore::cuda
