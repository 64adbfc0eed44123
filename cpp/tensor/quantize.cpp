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

void round_group(const float* x, std::int64_t count, DType dtype, float inverse,
                 std::uint8_t* out) {
  if (dtype == DType::kInt8) {
    for (std::int64_t i = 0; i < count; ++i) {
      const float rounded = std::clamp(round_to_whole(x[i] * inverse), -127.0f, 127.0f);
      out[i] = static_cast<std::uint8_t>(static_cast<std::int8_t>(rounded));
    }
    return;
  }
  const auto nibble = [&](float value) {
    return static_cast<int>(std::clamp(round_to_whole(value * inverse), -8.0f, 7.0f)) + 8;
  };
  for (std::int64_t i = 0; i < count; i += 2) {
    out[i / 2] = static_cast<std::uint8_t>(nibble(x[i]) | nibble(x[i + 1]) << 4);
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
  const std::int64_t per_byte = 8 / dtype_bits(dtype);
  const float most = dtype == DType::kInt8 ? 127.0f : -8.0f;
  const std::int64_t output_stride = rounding.transposed ? 1 : num_inputs;
  const std::int64_t input_stride = rounding.transposed ? num_outputs : 1;
  ThreadPool pool(rounding.num_threads > 0 ? rounding.num_threads : num_usable_cpus());
  pool.run([&](int thread) {
    float group[1024];
    const std::int64_t end = num_outputs * (thread + 1) / pool.size();
    for (std::int64_t row = num_outputs * thread / pool.size(); row < end; ++row) {
      for (std::int64_t k = 0; k < num_inputs; k += group_size) {
        widen(weight, row * output_stride + k * input_stride, input_stride, group_size, group);
        const float scale = largest(group, group_size) / most;
        scales[k / group_size * num_outputs + row] = scale;
        round_group(group, group_size, dtype, scale != 0.0f ? 1.0f / scale : 0.0f,
                    data + (row * num_inputs + k) / per_byte);
      }
    }
  });
}

}  // namespace pagedcore
