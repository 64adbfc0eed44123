#pragma once

#include <immintrin.h>

namespace pagedcore::cpu::PAGEDCORE_ISA {

// out_a[i] = the sum of a[i] and out_b[i] that of b[i]: of lanes j and j + 4, then j and j + 2,
// then both. A blend, for which every port will do, stands in for the second shuffle of each step.
[[gnu::always_inline]] inline void sum_each(const __m256 (&a)[4], const __m256 (&b)[4],
                                            float* out_a, float* out_b) {
  __m256 quads[4];  // a's in the lower half, b's in the upper
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    quads[i] =
        _mm256_add_ps(_mm256_blend_ps(a[i], b[i], 0xf0), _mm256_permute2f128_ps(a[i], b[i], 0x21));
  }
  const auto add_pairs = [](__m256 x, __m256 y) __attribute__((always_inline)) {
    return _mm256_add_ps(_mm256_blend_ps(x, y, 0xcc), _mm256_shuffle_ps(x, y, 0x4e));
  };
  const __m256 even = add_pairs(quads[0], quads[2]);
  const __m256 odd = add_pairs(quads[1], quads[3]);
  const __m256 sums = _mm256_add_ps(_mm256_blend_ps(even, odd, 0xaa),
                                    _mm256_permute_ps(_mm256_blend_ps(even, odd, 0x55), 0xb1));
  _mm_storeu_ps(out_a, _mm256_castps256_ps128(sums));
  _mm_storeu_ps(out_b, _mm256_extractf128_ps(sums, 1));
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
