#pragma once

#include "cpp/backend/cpu/simd/avx512_base.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

// Bytes, four to a 32-bit unit of a Vec; avx2.h says what the names mean.
struct Bytes {
  using Sums = __m512i;
  static Vec load_n(const void* p, int n) {
    const __mmask64 mask = n == 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1;
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi8(mask, p));
  }
  static Vec splat_unit(const std::int8_t* p) {
    std::int32_t unit;
    __builtin_memcpy(&unit, p, sizeof(unit));
    return _mm512_castsi512_ps(_mm512_set1_epi32(unit));
  }
  static Vec flip_signs(Vec a) {
    return _mm512_castsi512_ps(
        _mm512_xor_si512(_mm512_castps_si512(a), _mm512_set1_epi8(static_cast<char>(0x80))));
  }
  static Vec low_nibbles(Vec a) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi8(0x0f)));
  }
  static Vec high_nibbles(Vec a) {
    return low_nibbles(_mm512_castsi512_ps(_mm512_srli_epi16(_mm512_castps_si512(a), 4)));
  }
  static Sums splat_sum(std::int32_t x) { return _mm512_set1_epi32(x); }
  static Sums load_small(const std::int8_t* p, int n) {
    return _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_lanes(n), p));
  }
  static Sums multiply(Sums a, Sums b) { return _mm512_mullo_epi32(a, b); }
  static Sums add(Sums a, Sums b) { return _mm512_add_epi32(a, b); }
  static Vec to_float(Sums a) { return _mm512_cvtepi32_ps(a); }
  static Sums join(const Sums (&a)[4]) {
    const auto add_pairs = [](Sums x, Sums y) __attribute__((always_inline)) {
      const Vec swapped = _mm512_shuffle_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(y), 0x4e);
      return add(_mm512_mask_blend_epi32(0xcccc, x, y), _mm512_castps_si512(swapped));
    };
    const Sums even = add_pairs(a[0], a[2]);
    const Sums odd = add_pairs(a[1], a[3]);
    return add(_mm512_mask_blend_epi32(0xaaaa, even, odd),
               _mm512_shuffle_epi32(_mm512_mask_blend_epi32(0x5555, even, odd), _MM_PERM_CDAB));
  }
  static Sums dot(Sums sums, Vec a, Vec b);  // each set has its own
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
