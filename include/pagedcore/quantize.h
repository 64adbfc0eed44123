#pragma once

#include <cstdint>
#include <vector>

#include "pagedcore/export.h"
#include "pagedcore/tensor.h"

namespace pagedcore {

// A weight matrix in the form that LinearWeight describes: symmetric, without zero points.
struct QuantizedWeight {
  std::vector<std::uint8_t> data;  // kInt8: [out, in] signed bytes; kInt4: [out, in / 2]
  std::vector<float> scales;       // [in / group_size, out]
};

// Rounds a float32, float16 or bfloat16 matrix [out, in] to kInt8 or kInt4, each group of
// group_size inputs by its largest number: that becomes 127, or -8 for kInt4, which has no 8.
// Throws InvalidArgument unless group_size is a power of two from 32 to 1024 that divides `in`.
PAGEDCORE_API QuantizedWeight quantize_weight(const TensorView& weight, DType dtype,
                                              std::int64_t group_size, int num_threads = 0);

}  // namespace pagedcore
