#include "cpp/backend/cpu/kernels/linear.h"

#include "cpp/backend/cpu/kernels/any.h"
#include "cpp/backend/cpu/kernels/linear_share.h"
#include "cpp/backend/cpu/kernels/math.h"
#include "cpp/backend/cpu/kernels/quantize_rows.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {
namespace {

constexpr std::int64_t kAlignment = 64;

std::int64_t round_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

// Rows a multiple of 2 KiB apart fall into few sets of the L1 cache: several of them, read side by
// side, push each other out.
bool aliases(std::int64_t row_bytes) { return row_bytes % 2048 == 0; }
// Further apart by this much, eight rows lie evenly over all sets.
constexpr std::int64_t kSpreadBytes = 512;

// Converts rows of x to `dtype`.
void convert_rows(const LinearParams& params, DType dtype, std::int64_t stride, void* out,
                  ThreadPool& pool) {
  for_each_row_range(
      pool, params.num_rows, 2 * params.in_features, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          for_each_vector(params.in_features, [&](std::int64_t i, int n) {
            const Vec x = load_any(params.x_dtype, params.x, row * params.x_stride + i, n);
            store_any(dtype, out, row * stride + i, x, n);
          });
        }
      });
}

// The arguments of store_outputs.
struct Tile {
  const LinearParams& params;
  const OutputRange& range;
  std::int64_t row;
  int num_rows;
  const float* sums;
  std::int64_t sums_stride;
  int up_offset;
};

Vec load_bias(const LinearWeight& weight, std::int64_t output, int n) {
  return weight.bias ? load_any(weight.bias_dtype, weight.bias, output, n) : zero();
}

// finish(sum, up, y) gives what is stored over y, of which it may read n numbers.
template <typename T, typename Finish>
[[gnu::always_inline]] inline void for_each_sum(const Tile& tile, T* y, Finish&& finish) {
  const LinearParams& params = tile.params;
  for (int j = 0; j < tile.range.num_outputs; j += kLanes) {
    const int rest = tile.range.num_outputs - j;
    const int n = rest < kLanes ? rest : kLanes;
    const std::int64_t output = tile.range.output + j;
    const Vec bias = load_bias(params.weights[tile.range.weight], output, n);
    const Vec up_bias = tile.up_offset > 0 ? load_bias(params.weights[1], output, n) : zero();
    const float* sum = tile.sums + j;
    T* to = y + tile.row * params.y_stride + tile.range.column + j;
    for (int r = 0; r < tile.num_rows; ++r, sum += tile.sums_stride, to += params.y_stride) {
      const Vec value = finish(load(sum) + bias, load(sum + tile.up_offset) + up_bias, to, n);
      n == kLanes ? store(to, value) : store_n(to, value, n);
    }
  }
}

template <typename T>
void store_tile(const Tile& tile, T* y) {
  const Activation activation = tile.params.activation;
  switch (tile.params.epilogue) {
    case LinearEpilogue::kStore:
      if (activation == Activation::kNone) {
        return for_each_sum(tile, y, [](Vec sum, Vec, const T*, int) { return sum; });
      }
      return for_each_sum(
          tile, y, [activation](Vec sum, Vec, const T*, int) { return activate(activation, sum); });
    case LinearEpilogue::kAccumulate:
      return for_each_sum(tile, y, [](Vec sum, Vec, const T* to, int n) {
        return (n == kLanes ? load(to) : load_n(to, n)) + sum;
      });
    case LinearEpilogue::kGated:
      if (activation == Activation::kSilu) {
        return for_each_sum(tile, y, [](Vec gate, Vec up, const T*, int) {
          return activate(Activation::kSilu, gate) * up;
        });
      }
      return for_each_sum(tile, y, [activation](Vec gate, Vec up, const T*, int) {
        return activate(activation, gate) * up;
      });
  }
}

void linear_quantized(const LinearParams& params, Context& context) {
  const std::int64_t num_groups =
      params.num_rows * (params.in_features / params.weights[0].group_size);
  const std::int64_t stride = params.in_features + (aliases(params.in_features) ? kSpreadBytes : 0);
  const std::int64_t value_bytes = round_up(params.num_rows * stride, kAlignment);
  const std::int64_t group_bytes = round_up(num_groups * sizeof(float), kAlignment);
  const std::int64_t scratch_bytes = round_up(linear_scratch_bytes(params), kAlignment);
  std::byte* memory = context.workspace.reserve(value_bytes + 2 * group_bytes +
                                                context.pool.size() * scratch_bytes);
  const QuantizedX x{reinterpret_cast<std::int8_t*>(memory), stride,
                     reinterpret_cast<float*>(memory + value_bytes),
                     reinterpret_cast<std::int32_t*>(memory + value_bytes + group_bytes)};
  quantize_rows(params, x, context.pool);
  const LinearTask task{params,        x.values,
                        stride,        memory + value_bytes + 2 * group_bytes,
                        scratch_bytes, context.streams_stop_at_pages,
                        x.scales,      x.sums};
  if (params.weights[0].dtype == DType::kInt8) return linear_int8(task, context.pool);
  linear_int4(task, context.pool);
}

}  // namespace

void linear(const LinearParams& params, Context& context) {
  const DType weights = params.weights[0].dtype;
  if (weights == DType::kInt8 || weights == DType::kInt4) return linear_quantized(params, context);
  const bool dot = kHasBf16Dot && weights == DType::kBFloat16;
  const DType operand = dot ? DType::kBFloat16 : DType::kFloat32;
  const std::int64_t size = dot ? 2 : 4;
  const bool spread = params.num_rows > 1 && aliases(params.x_stride * size);
  const bool in_place = params.x_dtype == operand && !spread;

  const std::int64_t whole_lines = round_up(params.in_features, kAlignment / size);
  const std::int64_t stride = whole_lines + (aliases(whole_lines * size) ? kSpreadBytes / size : 0);
  const std::int64_t x_bytes = in_place ? 0 : round_up(params.num_rows * stride * size, kAlignment);
  const std::int64_t scratch_bytes = round_up(linear_scratch_bytes(params), kAlignment);
  std::byte* memory = context.workspace.reserve(x_bytes + context.pool.size() * scratch_bytes);

  LinearTask task{params,           params.x,      params.x_stride,
                  memory + x_bytes, scratch_bytes, context.streams_stop_at_pages};
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
  const std::int64_t rows = round_up(params.num_rows, kTileRows) + kMaxTileRows;
  return kPanelBytes + rows * kPanelWidth * static_cast<std::int64_t>(sizeof(float));
}

void store_outputs(const LinearParams& params, const OutputRange& range, std::int64_t row,
                   int num_rows, const float* sums, std::int64_t sums_stride, int up_offset) {
  const Tile tile{params, range, row, num_rows, sums, sums_stride, up_offset};
  switch (params.y_dtype) {
    case DType::kBFloat16:
      return store_tile(tile, static_cast<BFloat16*>(params.y));
    case DType::kFloat16:
      return store_tile(tile, static_cast<Float16*>(params.y));
    default:
      return store_tile(tile, static_cast<float*>(params.y));
  }
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
