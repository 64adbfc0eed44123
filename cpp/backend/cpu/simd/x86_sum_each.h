#pragma once

#include <immintrin.h>

namespace pagedcore::cpu::PAGEDCORE_ISA {

// out[i] = the sum of the i-th vector, of its lanes j and j + 4, then j and j + 2, then both.
[[gnu::always_inline]] inline void sum_each(__m256 a, __m256 b, __m256 c, __m256 d, float* out) {
  const __m256 ab =
      _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  const __m256 cd =
      _mm256_add_ps(_mm256_permute2f128_ps(c, d, 0x20), _mm256_permute2f128_ps(c, d, 0x31));
  const __m256 pairs = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44),  // a, c | b, d
                                     _mm256_shuffle_ps(ab, cd, 0xee));
  const __m256 sums = _mm256_add_ps(pairs, _mm256_movehdup_ps(pairs));
  const __m128 acbd =
      _mm_shuffle_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1), 0x88);
  _mm_storeu_ps(out, _mm_permute_ps(acbd, 0xd8));
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
