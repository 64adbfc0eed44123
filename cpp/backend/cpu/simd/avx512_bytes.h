#pragma once

#include "cpp/backend/cpu/simd/avx512.h"
#include "cpp/backend/cpu/simd/avx512_bytes_base.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

struct Bytes : BytesBase {
  static constexpr int kDotOffset = 128;
  static Sums dot(Sums sums, Vec a, Vec b) {
    const __m512i x = _mm512_xor_si512(_mm512_castps_si512(a), _mm512_set1_epi8(-128));
    const __m512i y = _mm512_castps_si512(b);
    const __m512i signed_y =
        _mm512_mask_sub_epi8(y, _mm512_movepi8_mask(x), _mm512_setzero_si512(), y);
    return add_pairs(sums, _mm512_abs_epi8(x), signed_y);
  }
  static Sums dot_nibbles(Sums sums, Vec a, Vec b) {
    return add_pairs(sums, _mm512_castps_si512(a), _mm512_castps_si512(b));
  }

 private:
  static Sums add_pairs(Sums sums, __m512i a, __m512i b) {
    const __m512i pairs = _mm512_maddubs_epi16(a, b);
    return _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
