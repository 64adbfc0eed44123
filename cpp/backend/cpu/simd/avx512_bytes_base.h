#pragma once

#include "cpp/backend/cpu/simd/avx512_base.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

// Bytes, four to a 32-bit unit of a Vec; avx2.h says what the names mean.
struct BytesBase {
  using Sums = __m512i;
  static Vec splat_unit(const std::int8_t* p) {
    std::int32_t unit;
    __builtin_memcpy(&unit, p, sizeof(unit));
    return _mm512_castsi512_ps(_mm512_set1_epi32(unit));
  }
  static Vec low_nibbles(Vec a) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi8(0x0f)));
  }
  static Vec high_nibbles(Vec a) {
    return low_nibbles(_mm512_castsi512_ps(_mm512_srli_epi16(_mm512_castps_si512(a), 4)));
  }
  static Sums splat_sum(std::int32_t x) { return _mm512_set1_epi32(x); }
  static Sums load_small(const std::int8_t* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store_lowest(std::int8_t* p, Vec a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_castps_si512(a)));
  }
  static Sums multiply(Sums a, Sums b) { return _mm512_mullo_epi32(a, b); }
  static Sums add(Sums a, Sums b) { return _mm512_add_epi32(a, b); }
  static Vec to_float(Sums a) { return _mm512_cvtepi32_ps(a); }
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
