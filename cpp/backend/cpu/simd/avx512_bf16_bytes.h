#pragma once

#include "cpp/backend/cpu/simd/avx512_bf16.h"
#include "cpp/backend/cpu/simd/avx512_bytes_base.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

struct Bytes : BytesBase {
  static constexpr int kDotOffset = 0;
  static Sums dot(Sums sums, Vec a, Vec b) {
    return _mm512_dpbusd_epi32(sums, _mm512_castps_si512(a), _mm512_castps_si512(b));
  }
  static Sums dot_nibbles(Sums sums, Vec a, Vec b) { return dot(sums, a, b); }
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
