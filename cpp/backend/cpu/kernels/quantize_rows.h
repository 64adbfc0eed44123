#pragma once

#include "cpp/backend/cpu/kernels/kernels.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

// Where rows of x go, rounded to signed bytes with one scale a group of inputs.
struct QuantizedX {
  std::int8_t* values;  // [num_rows, in_features]; 4-bit weights: of each 32, even ones first
  std::int64_t stride;  // of values
  float* scales;        // [num_rows, in_features / group_size]
  std::int32_t* sums;   // the same: of the rounded inputs
};

void quantize_rows(const LinearParams& params, const QuantizedX& out, ThreadPool& pool);

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
