#include "pagedcore/quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "cpp/base/thread_pool.h"
#include "cpp/tensor/half.h"
#include "pagedcore/error.h"

namespace pagedcore {
namespace {

void widen(const TensorView& weight, std::int64_t at, std::int64_t count, float* out) {
  if (weight.dtype == DType::kBFloat16) {
    const auto* x = static_cast<const std::uint16_t*>(weight.data) + at;
    for (std::int64_t i = 0; i < count; ++i) {
      out[i] = std::bit_cast<float>(static_cast<std::uint32_t>(x[i]) << 16);
    }
  } else if (weight.dtype == DType::kFloat16) {
    const auto* x = static_cast<const Float16*>(weight.data) + at;
    for (std::int64_t i = 0; i < count; ++i) out[i] = to_float(x[i]);
  } else {
    std::copy_n(static_cast<const float*>(weight.data) + at, count, out);
  }
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
      const float rounded = std::clamp(std::nearbyint(x[i] * inverse), -127.0f, 127.0f);
      out[i] = static_cast<std::uint8_t>(static_cast<std::int8_t>(rounded));
    }
    return;
  }
  const auto nibble = [&](float value) {
    return static_cast<int>(std::clamp(std::nearbyint(value * inverse), -8.0f, 7.0f)) + 8;
  };
  for (std::int64_t i = 0; i < count; i += 2) {
    out[i / 2] = static_cast<std::uint8_t>(nibble(x[i]) | nibble(x[i + 1]) << 4);
  }
}

}  // namespace

QuantizedWeight quantize_weight(const TensorView& weight, DType dtype, std::int64_t group_size,
                                int num_threads) {
  PAGEDCORE_REQUIRE(dtype == DType::kInt8 || dtype == DType::kInt4,
                    "quantize_weight: dtype must be int8 or int4, got ", dtype_name(dtype));
  PAGEDCORE_REQUIRE(
      weight.rank == 2 && (weight.dtype == DType::kFloat32 || weight.dtype == DType::kFloat16 ||
                           weight.dtype == DType::kBFloat16),
      "quantize_weight: weight must be a float32, float16 or bfloat16 matrix, got ",
      to_string(weight));
  const std::int64_t num_outputs = weight.shape[0];
  const std::int64_t num_inputs = weight.shape[1];
  PAGEDCORE_REQUIRE(group_size >= 32 && group_size <= 1024 &&
                        (group_size & (group_size - 1)) == 0 && num_inputs % group_size == 0,
                    "quantize_weight: group_size must be a power of two from 32 to 1024 that "
                    "divides the number of inputs ",
                    num_inputs, ", got ", group_size);
  const std::int64_t per_byte = 8 / dtype_bits(dtype);
  const float most = dtype == DType::kInt8 ? 127.0f : -8.0f;
  QuantizedWeight result;
  result.data.resize(num_outputs * num_inputs / per_byte);
  result.scales.resize(num_outputs * (num_inputs / group_size));
  ThreadPool pool(num_threads > 0 ? num_threads : num_usable_cpus());
  pool.run([&](int thread) {
    float group[1024];
    const std::int64_t end = num_outputs * (thread + 1) / pool.size();
    for (std::int64_t row = num_outputs * thread / pool.size(); row < end; ++row) {
      for (std::int64_t k = 0; k < num_inputs; k += group_size) {
        const std::int64_t at = row * num_inputs + k;
        widen(weight, at, group_size, group);
        const float scale = largest(group, group_size) / most;
        result.scales[k / group_size * num_outputs + row] = scale;
        round_group(group, group_size, dtype, scale != 0.0f ? 1.0f / scale : 0.0f,
                    result.data.data() + at / per_byte);
      }
    }
  });
  return result;
}

}  // namespace pagedcore
