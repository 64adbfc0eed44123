#pragma once

#include <cstdint>
#include <string_view>

#include "pagedcore/export.h"

namespace pagedcore {

enum class DType : std::int8_t {
  kFloat32,
  kFloat16,
  kBFloat16,
  kFp8E4M3,  // KV cache on CUDA, with a scale
  kInt8,     // quantised weights or KV cache, with scales
  kInt4,     // quantised weights, two to a byte
  kInt32,
  kInt64,
};

// Bits of one element: 32, 16, 8 or 4.
PAGEDCORE_API int dtype_bits(DType dtype);

// The name that numpy, torch and safetensors users know: "float32", "bfloat16", ...
PAGEDCORE_API std::string_view dtype_name(DType dtype);

// The inverse of dtype_name. Throws InvalidArgument with the list of names.
PAGEDCORE_API DType dtype_from_name(std::string_view name);

// Outputs of a quantised matrix that lie side by side. The last block is whole in memory, with any
// values where there are no outputs.
inline constexpr std::int64_t kBlockOutputs = 16;

}  // namespace pagedcore
