#pragma once

#include PAGEDCORE_SIMD_HEADER

#include "cpp/backend/cpu/kernels/kernels.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

// What kInt8 and kInt4 weights are too large by as unsigned bytes.
constexpr int weight_offset(DType dtype) { return dtype == DType::kInt8 ? 128 : 8; }

// Where rows of x go, rounded to signed bytes with one scale a group of inputs.
struct QuantizedX {
  std::int8_t* values;  // [num_rows, in_features]
  std::int64_t stride;  // of values
  float* scales;        // [num_rows, in_features / group_size]
  std::int32_t* sums;   // the same: of the rounded inputs, times minus the weights' offset
};

void quantize_rows(const LinearParams& params, const QuantizedX& out, ThreadPool& pool);

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
