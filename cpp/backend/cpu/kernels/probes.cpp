#include "cpp/backend/cpu/kernels/kernels.h"
#include "cpp/backend/cpu/kernels/linear_formats.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {
namespace {

constexpr int kChains = 12;  // more than the latency of one operation times the units that do it

template <typename F>
double multiply_add(std::int64_t iterations, float* sink) {
  Vec acc[kChains];
  for (Vec& a : acc) a = zero();
  const Vec w = splat(*sink);
  const Vec x = splat(sink[1]);
  for (std::int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) acc[c] = F::multiply_add(acc[c], w, x);
  }
  for (const Vec& a : acc) *sink += sum(a);
  return 2.0 * F::kUnitInputs * kLanes * kChains * static_cast<double>(iterations);
}

}  // namespace

float probe_read(const void* data, std::int64_t bytes) {
  constexpr std::int64_t kAhead = 4096;
  const auto* p = static_cast<const float*>(data);
  const std::int64_t count = bytes / static_cast<std::int64_t>(sizeof(float));
  Vec acc[4] = {zero(), zero(), zero(), zero()};
  for (std::int64_t i = 0; i < count; i += 64) {
    for (int line = 0; line < 4; ++line) {
      prefetch_l1(reinterpret_cast<const char*>(p + i) + kAhead + 64 * line);
    }
    for (int j = 0; j < 64; j += 4 * kLanes) {
      for (int c = 0; c < 4; ++c) acc[c] = max(acc[c], load(p + i + j + c * kLanes));
    }
  }
  return max_lane(max(max(acc[0], acc[1]), max(acc[2], acc[3])));
}

double probe_f32(std::int64_t iterations, float* sink) {
  return multiply_add<FmaFormat<float>>(iterations, sink);
}

double probe_bf16(std::int64_t iterations, float* sink) {
  return multiply_add<Bf16Format>(iterations, sink);
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
