#pragma once

#include "cpp/backend/cpu/kernels/kernels.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

// A linear op with x as the weights' format reads it: rows of x_stride operands.
struct LinearTask {
  const LinearParams& params;
  const void* x;
  std::int64_t x_stride;
  std::byte* scratch;  // scratch_bytes for each thread
  std::int64_t scratch_bytes;
  bool fetches_streams;  // Context::streams_stop_at_pages
  // Quantised weights: x is QuantizedX::values, and these are its other members.
  const float* x_scales = nullptr;
  const std::int32_t* x_sums = nullptr;
};

// What threads need each for a call of these sizes.
std::int64_t linear_scratch_bytes(const LinearParams& params);

// One for each dtype of weights.
void linear_f32(const LinearTask& task, ThreadPool& pool);
void linear_f16(const LinearTask& task, ThreadPool& pool);
void linear_bf16(const LinearTask& task, ThreadPool& pool);
void linear_int8(const LinearTask& task, ThreadPool& pool);
void linear_int4(const LinearTask& task, ThreadPool& pool);

// Outputs [output, output + num_outputs) of one weight matrix, at column `column` of y; with
// kGated, of gate and up alike.
struct OutputRange {
  int weight;
  std::int64_t output;
  int num_outputs;
  std::int64_t column;
};

// Finishes and stores rows [row, row + num_rows) of y. sums[r * sums_stride + j] belongs to output
// j; with kGated, up's sums lie up_offset behind gate's, else up_offset is 0.
void store_outputs(const LinearParams& params, const OutputRange& range, std::int64_t row,
                   int num_rows, const float* sums, std::int64_t sums_stride, int up_offset);

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
