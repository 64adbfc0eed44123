#pragma once

#include "cpp/backend/cpu/simd/avx512_base.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

inline constexpr bool kHasBf16Dot = false;
struct Bf16Dot;  // defined where kHasBf16Dot

inline __m256i narrow(BFloat16, Vec a) {
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
