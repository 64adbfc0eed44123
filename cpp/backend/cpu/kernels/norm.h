#pragma once

#include "cpp/backend/cpu/kernels/any.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

// The sum of f(i, n) over the vectors of `count` numbers, in one fixed order. Lanes behind n must
// be 0.
template <typename F>
[[gnu::always_inline]] inline float sum_vectors(std::int64_t count, F&& f) {
  constexpr int kSums = 4;
  Vec sums[kSums] = {zero(), zero(), zero(), zero()};
  std::int64_t i = 0;
  for (; i + kSums * kLanes <= count; i += kSums * kLanes) {
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) sums[s] = sums[s] + f(i + s * kLanes, kLanes);
  }
  for (int s = 0; i < count; i += kLanes, ++s) {
    const auto left = count - i;
    sums[s] = sums[s] + f(i, left < kLanes ? static_cast<int>(left) : kLanes);
  }
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// 1 / sqrt(mean of squares + epsilon)
inline float reciprocal_rms(float sum_of_squares, std::int64_t count, float epsilon) {
  return 1.0f / __builtin_sqrtf(sum_of_squares / static_cast<float>(count) + epsilon);
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
