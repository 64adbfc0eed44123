#pragma once

#include "cpp/backend/cpu/simd/avx512_base.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

inline constexpr bool kHasBf16Dot = true;

inline __m256i narrow(BFloat16, Vec a) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a));
}

// kLanes pairs of bfloat16 as they lie in memory, and the first n numbers of them (the rest 0).
inline Vec load_pairs(const BFloat16* p) { return _mm512_loadu_ps(p); }
inline Vec load_pairs_n(const BFloat16* p, int n) {
  const auto mask = static_cast<__mmask32>((std::uint64_t{1} << n) - 1);
  return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, p));
}
inline void store_pairs(BFloat16* p, Vec a) { _mm512_storeu_ps(p, a); }
// Numbers 0 .. 15, or 16 .. 31, of a and of b in turn: the pairs (a[i], b[i]).
inline Vec interleave_low(Vec a, Vec b) {
  const __m512i index = _mm512_set_epi16(
      47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
      39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  return _mm512_castsi512_ps(
      _mm512_permutex2var_epi16(_mm512_castps_si512(a), index, _mm512_castps_si512(b)));
}
inline Vec interleave_high(Vec a, Vec b) {
  const __m512i index = _mm512_set_epi16(
      63, 31, 62, 30, 61, 29, 60, 28, 59, 27, 58, 26, 57, 25, 56, 24,
      55, 23, 54, 22, 53, 21, 52, 20, 51, 19, 50, 18, 49, 17, 48, 16);
  return _mm512_castsi512_ps(
      _mm512_permutex2var_epi16(_mm512_castps_si512(a), index, _mm512_castps_si512(b)));
}
// One pair in every lane.
inline Vec splat_pair(const BFloat16* p) {
  std::int32_t pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return _mm512_castsi512_ps(_mm512_set1_epi32(pair));
}
// acc + a[2i] * b[2i] + a[2i + 1] * b[2i + 1] in each lane i: two roundings, in the processor's order.
inline Vec dot_pairs(Vec acc, Vec a, Vec b) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
