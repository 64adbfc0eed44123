#pragma once

#include "cuda/common/launch.h"
#include "cuda/common/row_squares.h"
#include "pagedcore/linear_ops.h"

namespace pagedcore::cuda {

// By which the products with a row are to be multiplied.
__device__ inline float row_factor(const RowSquares& squares, std::int64_t row) {
  if (squares.sums == nullptr) return 1.0f;
  const auto count = static_cast<int>(ceil_div(squares.width, SplitNorm::kWidth));
  const float* from = squares.sums + row * count;
  float sum = 0.0f;
#pragma unroll 16
  for (int i = 0; i < count; ++i) sum += from[i];
  return 1.0f / sqrtf(sum / squares.width + squares.epsilon);
}

}  // namespace pagedcore::cuda
