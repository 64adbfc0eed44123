#pragma once

#include "cpp/backend/cpu/simd/avx2.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

// Bytes, four to a 32-bit unit of a Vec.
struct Bytes {
  using Sums = __m256i;  // kLanes int32

  // Four bytes in every unit.
  static Vec splat_unit(const std::int8_t* p) {
    std::int32_t unit;
    __builtin_memcpy(&unit, p, sizeof(unit));
    return _mm256_castsi256_ps(_mm256_set1_epi32(unit));
  }
  static Vec low_nibbles(Vec a) {
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi8(0x0f)));
  }
  static Vec high_nibbles(Vec a) {
    return low_nibbles(_mm256_castsi256_ps(_mm256_srli_epi16(_mm256_castps_si256(a), 4)));
  }
  static Sums splat_sum(std::int32_t x) { return _mm256_set1_epi32(x); }
  // kLanes signed bytes as int32.
  static Sums load_small(const std::int8_t* p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  // The lowest byte of every unit.
  static void store_lowest(std::int8_t* p, Vec a) {
    const __m256i order = _mm256_set1_epi32(0x0c080400);
    const __m256i quads = _mm256_shuffle_epi8(_mm256_castps_si256(a), order);
    _mm_storel_epi64(
        reinterpret_cast<__m128i*>(p),
        _mm_unpacklo_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256(quads, 1)));
  }
  static Sums multiply(Sums a, Sums b) { return _mm256_mullo_epi32(a, b); }
  static Sums add(Sums a, Sums b) { return _mm256_add_epi32(a, b); }
  static Vec to_float(Sums a) { return _mm256_cvtepi32_ps(a); }
  // What dot() takes from the bytes of a: pairs of products of unsigned bytes would not fit 16
  // bits.
  static constexpr int kDotOffset = 128;
  // In each unit, sums plus the four products of an unsigned byte of a, less kDotOffset, and a
  // signed byte of b, not -128; exact.
  static Sums dot(Sums sums, Vec a, Vec b) {
    const __m256i x = _mm256_xor_si256(_mm256_castps_si256(a), _mm256_set1_epi8(-128));
    return add_pairs(sums, _mm256_abs_epi8(x), _mm256_sign_epi8(_mm256_castps_si256(b), x));
  }
  // The same for bytes of a below 16, of which nothing is taken.
  static Sums dot_nibbles(Sums sums, Vec a, Vec b) {
    return add_pairs(sums, _mm256_castps_si256(a), _mm256_castps_si256(b));
  }

 private:
  static Sums add_pairs(Sums sums, __m256i a, __m256i b) {
    const __m256i pairs = _mm256_maddubs_epi16(a, b);
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
