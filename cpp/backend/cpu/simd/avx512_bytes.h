#pragma once

#include "cpp/backend/cpu/simd/avx512.h"
#include "cpp/backend/cpu/simd/avx512_bytes_base.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

struct Bytes : BytesBase {
  static constexpr int kDotBlocks = 2;
  static Sums dot(Sums sums, Vec a, Vec b) {
    const __m512i x = _mm512_castps_si512(a);
    const __m512i y = _mm512_castps_si512(b);
    const __m512i even = _mm512_madd_epi16(_mm512_and_si512(x, _mm512_set1_epi16(0xff)),
                                           _mm512_srai_epi16(_mm512_slli_epi16(y, 8), 8));
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(x, 8), _mm512_srai_epi16(y, 8));
    return _mm512_add_epi32(sums, _mm512_add_epi32(even, odd));
  }
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
