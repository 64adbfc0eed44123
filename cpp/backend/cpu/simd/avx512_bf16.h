#pragma once

#include "cpp/backend/cpu/simd/avx512_base.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

inline constexpr bool kHasBf16Dot = true;

inline __m256i narrow(BFloat16, Vec a) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a)); }

// Arithmetic on pairs of bfloat16: a Vec holds kLanes of them, as they lie in memory.
struct Bf16Dot {
  // 2 * kLanes numbers, and the first n of them (the rest 0).
  static Vec load_pairs(const BFloat16* p) { return _mm512_loadu_ps(p); }
  static Vec load_pairs_n(const BFloat16* p, int n) {
    const auto mask = static_cast<__mmask32>((std::uint64_t{1} << n) - 1);
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, p));
  }
  static void store_pairs(BFloat16* p, Vec a) { _mm512_storeu_ps(p, a); }
  // The pairs (a[i], b[i]) of numbers i < kLanes, and of the rest, of 2 * kLanes in a and in b.
  static Vec interleave_low(Vec a, Vec b) {
    const __m512i index =
        _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,  //
                         39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    return _mm512_castsi512_ps(
        _mm512_permutex2var_epi16(_mm512_castps_si512(a), index, _mm512_castps_si512(b)));
  }
  static Vec interleave_high(Vec a, Vec b) {
    const __m512i index =
        _mm512_set_epi16(63, 31, 62, 30, 61, 29, 60, 28, 59, 27, 58, 26, 57, 25, 56, 24,  //
                         55, 23, 54, 22, 53, 21, 52, 20, 51, 19, 50, 18, 49, 17, 48, 16);
    return _mm512_castsi512_ps(
        _mm512_permutex2var_epi16(_mm512_castps_si512(a), index, _mm512_castps_si512(b)));
  }
  // One pair in every lane.
  static Vec splat_pair(const BFloat16* p) {
    std::int32_t pair;
    __builtin_memcpy(&pair, p, sizeof(pair));
    return _mm512_castsi512_ps(_mm512_set1_epi32(pair));
  }
  // Pairs (a[i], b[i]) of the first n <= kLanes numbers; (a[i], 0) where b is null.
  static Vec zip_pairs(const BFloat16* a, const BFloat16* b, int n) {
    const __mmask16 mask = first_lanes(n);
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, a));
    if (b == nullptr) return _mm512_castsi512_ps(low);
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, b));
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
  // The pairs (low[i], high[i]) of float32, rounded to nearest even.
  static Vec narrow_pairs(Vec low, Vec high) {
    const __m512i index =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                         23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const auto numbers = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(index, numbers));
  }
  // a * 2^n of float32, n integral; 0 below the smallest number.
  static Vec scale_exp2(Vec a, Vec n) { return _mm512_scalef_ps(a, n); }
  // acc + a[2i] * b[2i] + a[2i + 1] * b[2i + 1] in each lane i: two roundings, in the order of the
  // processor.
  static Vec dot_pairs(Vec acc, Vec a, Vec b) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
