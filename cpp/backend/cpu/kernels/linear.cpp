#include "cpp/backend/cpu/kernels/linear.h"

#include "cpp/backend/cpu/kernels/any.h"
#include "cpp/backend/cpu/kernels/linear_run.h"
#include "cpp/backend/cpu/kernels/math.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {
namespace {

constexpr std::int64_t kAlignment = 64;

std::int64_t round_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

// Converts rows of x to `dtype`, with a zero behind an odd number of inputs.
void convert_rows(const LinearParams& params, DType dtype, std::int64_t stride, void* out,
                  ThreadPool& pool) {
  for_each_row_range(pool, params.num_rows, 2 * params.in_features,
                     [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t from = row * params.x_stride;
      const std::int64_t to = row * stride;
      for_each_vector(params.in_features, [&](std::int64_t i, int n) {
        store_any(dtype, out, to + i, load_any(params.x_dtype, params.x, from + i, n), n);
      });
      if (params.in_features < stride) store_any(dtype, out, to + params.in_features, zero(), 1);
    }
  });
}

Vec load_bias(const LinearWeight& weight, std::int64_t output, int n) {
  return weight.bias ? load_any(weight.bias_dtype, weight.bias, output, n) : zero();
}

}  // namespace

void linear(const LinearParams& params, Context& context) {
  const DType weights = params.weights[0].dtype;
  const bool dot = kHasBf16Dot && weights == DType::kBFloat16;
  const DType operand = dot ? DType::kBFloat16 : DType::kFloat32;
  // Kernels of pairs read a whole last pair.
  const bool in_place = params.x_dtype == operand && !(dot && params.in_features % 2 != 0);

  const std::int64_t stride = round_up(params.in_features, 2);
  const std::int64_t x_bytes =
      in_place ? 0 : round_up(params.num_rows * stride * (dot ? 2 : 4), kAlignment);
  const std::int64_t scratch_bytes = round_up(linear_scratch_bytes(params), kAlignment);
  std::byte* memory = context.workspace.reserve(x_bytes + context.pool.size() * scratch_bytes);

  LinearTask task{params, params.x, params.x_stride, memory + x_bytes, scratch_bytes};
  if (!in_place) {
    convert_rows(params, operand, stride, memory, context.pool);
    task.x = memory;
    task.x_stride = stride;
  }
  if (weights == DType::kBFloat16) return linear_bf16(task, context.pool);
  if (weights == DType::kFloat16) return linear_f16(task, context.pool);
  linear_f32(task, context.pool);
}

std::int64_t linear_scratch_bytes(const LinearParams& params) {
  const std::int64_t rows = round_up(params.num_rows, kTileRows) + kStreamRows;
  return (kPanelUnits + rows) * kPanelWidth * static_cast<std::int64_t>(sizeof(float));
}

void store_outputs(const LinearParams& params, const OutputRange& range, std::int64_t row,
                   int num_rows, const float* sums, std::int64_t sums_stride, int up_offset) {
  const LinearWeight& weight = params.weights[range.weight];
  for (int j = 0; j < range.num_outputs; j += kLanes) {
    const int n = range.num_outputs - j < kLanes ? range.num_outputs - j : kLanes;
    const Vec bias = load_bias(weight, range.output + j, n);
    const bool gated = params.epilogue == LinearEpilogue::kGated;
    const Vec up_bias = gated ? load_bias(params.weights[1], range.output + j, n) : zero();
    for (int r = 0; r < num_rows; ++r) {
      const float* sum = sums + r * sums_stride + j;
      const std::int64_t at = (row + r) * params.y_stride + range.column + j;
      Vec y = activate(params.activation, load(sum) + bias);
      if (gated) y = y * (load(sum + up_offset) + up_bias);
      if (params.epilogue == LinearEpilogue::kAccumulate) {
        y = load_any(params.y_dtype, params.y, at, n) + y;
      }
      store_any(params.y_dtype, params.y, at, y, n);
    }
  }
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
