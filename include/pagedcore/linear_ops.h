#pragma once

#include <array>
#include <cstdint>

#include "pagedcore/dtype.h"

namespace pagedcore {

// Parameters of linear(); what ops.h says of pointers and strides holds here too.

enum class Activation : std::int8_t { kNone, kSilu, kGelu, kGeluTanh, kRelu };
enum class WeightLayout : std::int8_t { kOutIn, kInOut };  // kInOut: GPT-2's Conv1D

// One weight matrix of a linear op, used in place.
struct LinearWeight {
  const void* data = nullptr;  // [out_features, in_features], or its transpose for kInOut
  DType dtype = DType::kFloat32;
  WeightLayout layout = WeightLayout::kOutIn;
  std::int64_t out_features = 0;
  const void* bias = nullptr;  // [out_features]
  DType bias_dtype = DType::kFloat32;
  // Quantised: value = (q - zero_point) * scale with a signed q. data is [blocks of outputs,
  // in_features / n, kBlockOutputs, n]: for every n inputs an output has four bytes. kInt8: n = 4
  // bytes q + 128. kInt4: n = 8 halves of bytes q + 8, input i < 4 in the low four bits of byte i
  // and input i + 4 in its high ones. One scale a group of group_size inputs, a power of two from
  // 32 to 1024 that divides in_features.
  const float* scales = nullptr;             // [blocks, in_features / group_size, kBlockOutputs]
  const std::int8_t* zero_points = nullptr;  // same shape; null: all 0
  std::int64_t group_size = 0;

  friend bool operator==(const LinearWeight&, const LinearWeight&) = default;
};

enum class LinearEpilogue : std::int8_t {
  kStore,       // y = activation(x W^T + bias)
  kAccumulate,  // y += x W^T + bias
  kGated,       // weights are gate and up: y = activation(x G^T + bias) * (x U^T + bias)
};

// An RMS norm in two halves, so that no op of its own lies between the linear op whose y is normed
// and those that read the outcome. The first leaves `scaled` and `squares`; the others end it:
//   norm(y)[r] = scaled[r] / sqrt(sum(squares[r]) / out_features + epsilon)
// Only for a backend and parameters that Backend::splits_norm() names.
struct SplitNorm {
  static constexpr std::int64_t kWidth = 128;  // neighbours whose squares are summed
  const void* weight = nullptr;                // [out_features]; null: there is no norm
  DType weight_dtype = DType::kFloat32;
  void* scaled = nullptr;    // out: [num_rows, out_features] of x_dtype: y * weight
  float* squares = nullptr;  // out: [num_rows, ceil(out_features / kWidth)]: sums of y * y

  friend bool operator==(const SplitNorm&, const SplitNorm&) = default;
};

// One to three weights of one dtype read the same x; their outputs lie side by side in y.
// Each output's sum runs over in_features in one order, whatever num_rows is.
struct LinearParams {
  std::int64_t num_rows = 0;
  std::int64_t in_features = 0;
  const void* x = nullptr;  // [num_rows, in_features], rows x_stride apart
  DType x_dtype = DType::kFloat32;
  std::int64_t x_stride = 0;
  // [in_features]: input i of quantised weights is x[x_order[i]]; null: x[i].
  const std::int32_t* x_order = nullptr;
  int num_weights = 1;
  std::array<LinearWeight, 3> weights = {};
  LinearEpilogue epilogue = LinearEpilogue::kStore;
  Activation activation = Activation::kNone;
  void* y = nullptr;  // [num_rows, sum of out_features] (kGated: out_features), rows y_stride apart
  DType y_dtype = DType::kFloat32;
  std::int64_t y_stride = 0;
  SplitNorm norm = {};  // of y, begun; kAccumulate of one weight only
  // Of an x that a split norm begun with as many rows: its squares, by which linear ends it; null:
  // x is as it is. Not with kAccumulate.
  const float* x_squares = nullptr;
  float x_epsilon = 1e-5f;

  friend bool operator==(const LinearParams&, const LinearParams&) = default;
};

}  // namespace pagedcore
