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
