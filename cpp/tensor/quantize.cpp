#include "pagedcore/quantize.h"

#include <algorithm>
#include <bit>

#include "cpp/base/thread_pool.h"
#include "cpp/tensor/half.h"
#include "pagedcore/error.h"

namespace pagedcore {
namespace {

// Numbers at, at + stride, ... in float32.
void widen(const TensorView& weight, std::int64_t at, std::int64_t stride, std::int64_t count,
           float* out) {
  if (weight.dtype == DType::kBFloat16) {
    const auto* x = static_cast<const std::uint16_t*>(weight.data) + at;
    for (std::int64_t i = 0; i < count; ++i) {
      out[i] = std::bit_cast<float>(static_cast<std::uint32_t>(x[i * stride]) << 16);
    }
  } else if (weight.dtype == DType::kFloat16) {
    const auto* x = static_cast<const Float16*>(weight.data) + at;
    for (std::int64_t i = 0; i < count; ++i) out[i] = to_float(x[i * stride]);
  } else {
    const auto* x = static_cast<const float*>(weight.data) + at;
    for (std::int64_t i = 0; i < count; ++i) out[i] = x[i * stride];
  }
}

// To the nearest whole number, ties to even. REQUIRES: |x| below 2^22.
float round_to_whole(float x) {
  constexpr float kRounder = 12582912.0f;  // leaves no bits below 1
  return (x + kRounder) - kRounder;
}

// The number of the group that is farthest from zero.
float largest(const float* x, std::int64_t count) {
  float low = 0.0f;
  float high = 0.0f;
  for (std::int64_t i = 0; i < count; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  return high >= -low ? high : low;
}

// Rounds a group of one output of a block; `out` is where its bytes of the group's first line lie.
void round_group(const float* x, std::int64_t count, DType dtype, float inverse,
                 std::uint8_t* out) {
  constexpr std::int64_t kLineBytes = 4 * kBlockOutputs;
  const auto rounded = [&](std::int64_t i, float least, float most) {
    return static_cast<int>(std::clamp(round_to_whole(x[i] * inverse), least, most));
  };
  if (dtype == DType::kInt8) {
    for (std::int64_t i = 0; i < count; ++i) {
      out[i / 4 * kLineBytes + i % 4] =
          static_cast<std::uint8_t>(rounded(i, -127.0f, 127.0f) + 128);
    }
    return;
  }
  const auto nibble = [&](std::int64_t i) { return rounded(i, -8.0f, 7.0f) + 8; };
  for (std::int64_t i = 0; i < count; i += 8) {
    for (std::int64_t byte = 0; byte < 4; ++byte) {
      out[i / 8 * kLineBytes + byte] =
          static_cast<std::uint8_t>(nibble(i + byte) | nibble(i + byte + 4) << 4);
    }
  }
}

}  // namespace

void quantize_weight(const TensorView& weight, const WeightRounding& rounding, std::uint8_t* data,
                     float* scales) {
  const DType dtype = rounding.dtype;
  const std::int64_t group_size = rounding.group_size;
  PAGEDCORE_REQUIRE(dtype == DType::kInt8 || dtype == DType::kInt4,
                    "quantize_weight: dtype must be int8 or int4, got ", dtype_name(dtype));
  PAGEDCORE_REQUIRE(
      weight.rank == 2 && (weight.dtype == DType::kFloat32 || weight.dtype == DType::kFloat16 ||
                           weight.dtype == DType::kBFloat16),
      "quantize_weight: weight must be a float32, float16 or bfloat16 matrix, got ",
      to_string(weight));
  const std::int64_t num_outputs = weight.shape[rounding.transposed ? 1 : 0];
  const std::int64_t num_inputs = weight.shape[rounding.transposed ? 0 : 1];
  PAGEDCORE_REQUIRE(group_size >= 32 && group_size <= 1024 &&
                        (group_size & (group_size - 1)) == 0 && num_inputs % group_size == 0,
                    "quantize_weight: group_size must be a power of two from 32 to 1024 that "
                    "divides the number of inputs ",
                    num_inputs, ", got ", group_size);
  const std::int64_t output_bytes = num_inputs * dtype_bits(dtype) / 8;
  const std::int64_t num_groups = num_inputs / group_size;
  const std::int64_t num_blocks = (num_outputs + kBlockOutputs - 1) / kBlockOutputs;
  const float most = dtype == DType::kInt8 ? 127.0f : -8.0f;
  const std::int64_t output_stride = rounding.transposed ? 1 : num_inputs;
  const std::int64_t input_stride = rounding.transposed ? num_outputs : 1;
  ThreadPool pool(rounding.num_threads > 0 ? rounding.num_threads : num_usable_cpus());
  pool.run([&](int thread) {
    float group[1024];
    const auto round_output = [&](std::int64_t output) {
      const std::int64_t lane = output % kBlockOutputs;
      std::uint8_t* const bytes = data + (output - lane) * output_bytes + 4 * lane;
      float* const factors = scales + (output - lane) * num_groups + lane;
      for (std::int64_t k = 0; k < num_inputs; k += group_size) {
        if (output < num_outputs) {
          widen(weight, output * output_stride + k * input_stride, input_stride, group_size, group);
        } else {
          std::fill_n(group, group_size, 0.0f);
        }
        const float scale = largest(group, group_size) / most;
        factors[k / group_size * kBlockOutputs] = scale;
        round_group(group, group_size, dtype, scale != 0.0f ? 1.0f / scale : 0.0f,
                    bytes + k * dtype_bits(dtype) / 8 * kBlockOutputs);
      }
    };
    const std::int64_t end = num_blocks * (thread + 1) / pool.size() * kBlockOutputs;
    std::int64_t output = num_blocks * thread / pool.size() * kBlockOutputs;
    for (; output < end; ++output) round_output(output);
  });
}

TensorView quantized_data_view(DType dtype, std::int64_t num_outputs, std::int64_t num_inputs) {
  const std::int64_t num_blocks = (num_outputs + kBlockOutputs - 1) / kBlockOutputs;
  const std::int64_t unit = 32 / dtype_bits(dtype);
  return {.dtype = dtype, .rank = 4, .shape = {num_blocks, num_inputs / unit, kBlockOutputs, unit}};
}

TensorView quantized_scales_view(std::int64_t num_outputs, std::int64_t num_groups) {
  const std::int64_t num_blocks = (num_outputs + kBlockOutputs - 1) / kBlockOutputs;
  return {.dtype = DType::kFloat32, .rank = 3, .shape = {num_blocks, num_groups, kBlockOutputs}};
}

}  // namespace pagedcore
