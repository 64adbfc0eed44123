#include "cpp/backend/cpu/kernels/quantize_rows.h"

#include PAGEDCORE_BYTES_HEADER

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

// Rounds kGroupPart inputs, four to every `stride` bytes of `out`, and adds them to `sums`.
[[gnu::always_inline]] inline Bytes::Sums round_part(const Inputs& x, std::int64_t at,
                                                     float inverse, std::int64_t stride,
                                                     Bytes::Sums sums, std::int8_t* out) {
  std::int8_t values[kGroupPart];
  for (int i = 0; i < kGroupPart; i += kLanes) {
    Bytes::store_lowest(values + i, fma(x.load(at + i), splat(inverse), splat(kRounder)));
  }
  for (int i = 0; i < kGroupPart; i += 4) __builtin_memcpy(out + i / 4 * stride, values + i, 4);
  for (int i = 0; i < kGroupPart; i += kLanes) {
    sums = Bytes::add(sums, Bytes::load_small(values + i));
  }
  return sums;
}

// Rounds one group of a row to the places that its first value, its scale and its sum have.
void quantize_group(const LinearParams& p, std::int64_t row, std::int64_t group,
                    std::int64_t stride, std::int8_t* values, float* scale, std::int32_t* x_sum) {
  const std::int64_t group_size = p.weights[0].group_size;
  float copy[kMaxGroupSize];
  const Inputs x = group_inputs(p, row, group * group_size, copy);
  Vec size = zero();
  for (std::int64_t i = 0; i < group_size; i += kLanes) {
    size = max(size, max(x.load(i), zero() - x.load(i)));
  }
  const float most = max_lane(size);
  const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
  Bytes::Sums sums = Bytes::splat_sum(0);
  for (std::int64_t i = 0; i < group_size; i += kGroupPart) {
    sums = round_part(x, i, inverse, stride, sums, values + i / 4 * stride);
  }
  *scale = most / 127.0f;
  *x_sum =
      -static_cast<std::int32_t>(sum(Bytes::to_float(sums))) * weight_offset(p.weights[0].dtype);
}

// One group of all rows of a tile.
void quantize_tile(const LinearParams& p, std::int64_t tile, std::int64_t group,
                   const QuantizedX& out) {
  const std::int64_t group_size = p.weights[0].group_size;
  const std::int64_t num_groups = p.in_features / group_size;
  const std::int64_t at = (tile * num_groups + group) * out.tile_rows;
  std::int8_t* const values = out.values + at * group_size;
  for (int r = 0; r < out.tile_rows; ++r) {
    const std::int64_t row = tile * out.tile_rows + r;
    const std::int64_t stride = 4 * out.tile_rows;
    if (row < p.num_rows) {
      quantize_group(p, row, group, stride, values + 4 * r, out.scales + at + r, out.sums + at + r);
      continue;
    }
    for (std::int64_t i = 0; i < group_size / 4; ++i) {
      __builtin_memset(values + i * stride + 4 * r, 0, 4);
    }
    out.scales[at + r] = 0.0f;
    out.sums[at + r] = 0;
  }
}

}  // namespace

void quantize_rows(const LinearParams& params, const QuantizedX& out, ThreadPool& pool) {
  const std::int64_t group_size = params.weights[0].group_size;
  const std::int64_t num_groups = params.in_features / group_size;
  const std::int64_t num_tiles = (params.num_rows + out.tile_rows - 1) / out.tile_rows;
  for_each_row_range(pool, num_tiles * num_groups, 4 * group_size * out.tile_rows,
                     [&](std::int64_t begin, std::int64_t end) {
                       for (std::int64_t i = begin; i < end; ++i) {
                         quantize_tile(params, i / num_groups, i % num_groups, out);
                       }
                     });
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
