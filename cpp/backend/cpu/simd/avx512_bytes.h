#pragma once

#include "cpp/backend/cpu/simd/avx512.h"
#include "cpp/backend/cpu/simd/avx512_bytes_base.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

struct Bytes : BytesBase {
  static Sums dot(Sums sums, Vec a, Vec b) {
    const __m512i high = pairs(high_nibbles(a), b);
    return _mm512_add_epi32(dot_nibbles(sums, low_nibbles(a), b),
                            _mm512_madd_epi16(high, _mm512_set1_epi16(16)));
  }
  static Sums dot_nibbles(Sums sums, Vec a, Vec b) {
    return _mm512_add_epi32(sums, _mm512_madd_epi16(pairs(a, b), _mm512_set1_epi16(1)));
  }

 private:
  static __m512i pairs(Vec a, Vec b) {
    return _mm512_maddubs_epi16(_mm512_castps_si512(a), _mm512_castps_si512(b));
  }
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
