#pragma once

#include PAGEDCORE_SIMD_HEADER

#include "cpp/backend/cpu/kernels/kernels.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

// What kInt8 and kInt4 weights are too large by as unsigned bytes.
constexpr int weight_offset(DType dtype) { return dtype == DType::kInt8 ? 128 : 8; }

// Rows of x that meet weights together: half of the registers hold a total and a group's sum for
// each of them.
inline constexpr int kQuantizedTileRows = kNumRegisters / 4;

// Where rows of x go, rounded to signed bytes with one scale a group of inputs. Rows lie in tiles:
// four inputs of each, then the next four, so that a tile is read in one piece. Behind the last
// row, a tile has zeros.
struct QuantizedX {
  int tile_rows;
  std::int8_t* values;  // [tiles, in_features / 4, tile_rows, 4]
  float* scales;        // [tiles, in_features / group_size, tile_rows]
  std::int32_t* sums;   // the same: of the rounded inputs, times minus the weights' offset
};

void quantize_rows(const LinearParams& params, const QuantizedX& out, ThreadPool& pool);

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
