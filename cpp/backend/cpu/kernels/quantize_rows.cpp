#include "cpp/backend/cpu/kernels/quantize_rows.h"

#include "cpp/backend/cpu/kernels/any.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {
namespace {

constexpr int kMaxGroupSize = 1024;
constexpr int kGroupPart = 32;  // inputs rounded at a time; group sizes are its multiples

// Adding this to a number below 2^22 leaves it, rounded to nearest even, in the last bits.
constexpr float kRounder = 12582912.0f;

// Inputs in the order of the weights: of any dtype where they lie so, else copied.
struct Inputs {
  DType dtype;
  const void* x;
  std::int64_t at;

  Vec load(std::int64_t i) const { return load_any(dtype, x, at + i); }
};

Inputs group_inputs(const LinearParams& p, std::int64_t row, std::int64_t first, float* copy) {
  const std::int64_t at = row * p.x_stride;
  if (p.x_order == nullptr) return {p.x_dtype, p.x, at + first};
  for (std::int64_t i = 0; i < p.weights[0].group_size; ++i) {
    store_n(copy + i, load_any(p.x_dtype, p.x, at + p.x_order[first + i], 1), 1);
  }
  return {DType::kFloat32, copy, 0};
}

// Rounds kGroupPart inputs; returns their sum.
std::int32_t round_part(const Inputs& x, std::int64_t at, float inverse, std::int8_t* out) {
  std::int32_t bits[kGroupPart];
  for (int i = 0; i < kGroupPart; i += kLanes) {
    const Vec shifted = fma(x.load(at + i), splat(inverse), splat(kRounder));
    __builtin_memcpy(bits + i, &shifted, sizeof(shifted));
  }
  std::int32_t sum = 0;
  for (int i = 0; i < kGroupPart; ++i) {
    out[i] = static_cast<std::int8_t>(bits[i]);
    sum += out[i];
  }
  return sum;
}

void quantize_row(const LinearParams& p, std::int64_t row, const QuantizedX& out) {
  const std::int64_t group_size = p.weights[0].group_size;
  const std::int64_t num_groups = p.in_features / group_size;
  float copy[kMaxGroupSize];
  for (std::int64_t group = 0; group < num_groups; ++group) {
    const Inputs x = group_inputs(p, row, group * group_size, copy);
    Vec size = zero();
    for (std::int64_t i = 0; i < group_size; i += kLanes) {
      size = max(size, max(x.load(i), zero() - x.load(i)));
    }
    const float most = max_lane(size);
    const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
    std::int32_t sum = 0;
    std::int8_t* to = out.values + row * out.stride + group * group_size;
    for (std::int64_t i = 0; i < group_size; i += kGroupPart) {
      sum += round_part(x, i, inverse, to + i);
    }
    out.scales[row * num_groups + group] = most / 127.0f;
    out.sums[row * num_groups + group] = -sum * weight_offset(p.weights[0].dtype);
  }
}

}  // namespace

void quantize_rows(const LinearParams& params, const QuantizedX& out, ThreadPool& pool) {
  for_each_row_range(pool, params.num_rows, 4 * params.in_features,
                     [&](std::int64_t begin, std::int64_t end) {
                       for (std::int64_t row = begin; row < end; ++row) {
                         quantize_row(params, row, out);
                       }
                     });
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
