#include "cpp/backend/cpu/kernels/norm.h"

#include "cpp/backend/cpu/kernels/kernels.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {
namespace {

void norm_row(const NormParams& p, std::int64_t x_row, std::int64_t y_row) {
  const std::int64_t x_at = x_row * p.width;
  const std::int64_t y_at = y_row * p.width;
  const auto load_x = [&](std::int64_t i, int n) { return load_any(p.x_dtype, p.x, x_at + i, n); };
  float mean = 0.0f;
  float factor = 1.0f;
  if (p.kind == NormKind::kLayer) {
    mean = sum_vectors(p.width, load_x) / static_cast<float>(p.width);
    float mean_lanes[kLanes];
    store(mean_lanes, splat(mean));
    factor = reciprocal_rms(sum_vectors(p.width,
                                        [&](std::int64_t i, int n) {
                                          const Vec difference =
                                              load_x(i, n) - load_n(mean_lanes, n);
                                          return difference * difference;
                                        }),
                            p.width, p.epsilon);
  } else if (p.kind == NormKind::kRms) {
    factor = reciprocal_rms(sum_vectors(p.width,
                                        [&](std::int64_t i, int n) {
                                          const Vec x = load_x(i, n);
                                          return x * x;
                                        }),
                            p.width, p.epsilon);
  }
  const Vec means = splat(mean);
  const Vec factors = splat(factor);
  for_each_vector(p.width, [&](std::int64_t i, int n) {
    Vec y = (load_x(i, n) - means) * factors;
    if (p.weight != nullptr) y = y * load_any(p.weight_dtype, p.weight, i, n);
    if (p.bias != nullptr) y = y + load_any(p.weight_dtype, p.bias, i, n);
    store_any(p.y_dtype, p.y, y_at + i, y, n);
  });
}

}  // namespace

void norm(const NormParams& p, Context& context) {
  for_each_row_range(context.pool, p.num_rows, 2 * p.width,
                     [&](std::int64_t begin, std::int64_t end) {
                       for (std::int64_t row = begin; row < end; ++row) {
                         norm_row(p, p.rows != nullptr ? p.rows[row] : row, row);
                       }
                     });
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
