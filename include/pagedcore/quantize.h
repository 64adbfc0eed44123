#pragma once

#include <cstdint>

#include "pagedcore/export.h"
#include "pagedcore/tensor.h"

namespace pagedcore {

struct WeightRounding {
  DType dtype = DType::kInt8;    // kInt8 or kInt4
  std::int64_t group_size = 32;  // a power of two from 32 to 1024 that divides the inputs
  bool transposed = false;       // the matrix is [in, out], not [out, in]
  int num_threads = 0;           // 0: as many as this process may use
};

// Rounds a float32, float16 or bfloat16 matrix as LinearWeight describes, without zero points: each
// group of inputs by its largest number, which becomes 127, or -8 for kInt4, which has no 8;
// outputs behind the last become zeros. `data` and `scales` take what the views below describe.
// Throws InvalidArgument.
PAGEDCORE_API void quantize_weight(const TensorView& weight, const WeightRounding& rounding,
                                   std::uint8_t* data, float* scales);

// The data of a quantised matrix and its scales, without memory.
PAGEDCORE_API TensorView quantized_data_view(DType dtype, std::int64_t num_outputs,
                                             std::int64_t num_inputs);
PAGEDCORE_API TensorView quantized_scales_view(std::int64_t num_outputs, std::int64_t num_groups);

}  // namespace pagedcore
