#pragma once

#include "cpp/backend/cpu/simd/avx2.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

// Bytes, four to a 32-bit unit of a Vec.
struct Bytes {
  using Sums = __m256i;  // kLanes int32

  // The first n <= 4 * kLanes bytes, the rest 0.
  static Vec load_n(const void* p, int n) {
    alignas(32) char copy[32] = {};
    for (int i = 0; i < n; ++i) copy[i] = static_cast<const char*>(p)[i];
    return _mm256_load_ps(reinterpret_cast<const float*>(copy));
  }
  // Four bytes in every unit.
  static Vec splat_unit(const std::int8_t* p) {
    std::int32_t unit;
    __builtin_memcpy(&unit, p, sizeof(unit));
    return _mm256_castsi256_ps(_mm256_set1_epi32(unit));
  }
  // A signed byte plus 128, unsigned.
  static Vec flip_signs(Vec a) {
    return _mm256_castsi256_ps(
        _mm256_xor_si256(_mm256_castps_si256(a), _mm256_set1_epi8(static_cast<char>(0x80))));
  }
  static Vec low_nibbles(Vec a) {
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi8(0x0f)));
  }
  static Vec high_nibbles(Vec a) {
    return low_nibbles(_mm256_castsi256_ps(_mm256_srli_epi16(_mm256_castps_si256(a), 4)));
  }
  static Sums splat_sum(std::int32_t x) { return _mm256_set1_epi32(x); }
  // n <= kLanes signed bytes as int32, the rest 0.
  static Sums load_small(const std::int8_t* p, int n) {
    alignas(8) char copy[8] = {};
    for (int i = 0; i < n; ++i) copy[i] = static_cast<char>(p[i]);
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(copy)));
  }
  static Sums multiply(Sums a, Sums b) { return _mm256_mullo_epi32(a, b); }
  static Sums add(Sums a, Sums b) { return _mm256_add_epi32(a, b); }
  static Vec to_float(Sums a) { return _mm256_cvtepi32_ps(a); }
  // Lane 4 q + i: the sum of lanes 4 q to 4 q + 3 of a[i].
  static Sums join(const Sums (&a)[4]) {
    const auto add_pairs = [](Sums x, Sums y) __attribute__((always_inline)) {
      const Vec swapped = _mm256_shuffle_ps(_mm256_castsi256_ps(x), _mm256_castsi256_ps(y), 0x4e);
      return add(_mm256_blend_epi32(x, y, 0xcc), _mm256_castps_si256(swapped));
    };
    const Sums even = add_pairs(a[0], a[2]);
    const Sums odd = add_pairs(a[1], a[3]);
    return add(_mm256_blend_epi32(even, odd, 0xaa),
               _mm256_shuffle_epi32(_mm256_blend_epi32(even, odd, 0x55), 0xb1));
  }
  // In each unit, sums plus the four products of an unsigned byte of a and a signed byte of b;
  // exact.
  static Sums dot(Sums sums, Vec a, Vec b) {
    const __m256i x = _mm256_castps_si256(a);
    const __m256i y = _mm256_castps_si256(b);
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(x, _mm256_set1_epi16(0xff)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(y, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(y, 8));
    return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
  }
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
