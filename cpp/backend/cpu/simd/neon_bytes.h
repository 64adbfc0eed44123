#pragma once

#include "cpp/backend/cpu/simd/neon.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

// Bytes, four to a 32-bit unit of a Vec; avx2.h says what the names mean.
struct Bytes {
  using Sums = int32x4_t;
  static Vec splat_unit(const std::int8_t* p) {
    std::int32_t unit;
    __builtin_memcpy(&unit, p, sizeof(unit));
    return vreinterpretq_f32_s32(vdupq_n_s32(unit));
  }
  static Vec low_nibbles(Vec a) {
    return vreinterpretq_f32_u8(vandq_u8(vreinterpretq_u8_f32(a), vdupq_n_u8(0x0f)));
  }
  static Vec high_nibbles(Vec a) {
    return vreinterpretq_f32_u8(vshrq_n_u8(vreinterpretq_u8_f32(a), 4));
  }
  static Sums splat_sum(std::int32_t x) { return vdupq_n_s32(x); }
  static Sums load_small(const std::int8_t* p) {
    const std::int32_t copy[kLanes] = {p[0], p[1], p[2], p[3]};
    return vld1q_s32(copy);
  }
  static void store_lowest(std::int8_t* p, Vec a) {
    const int16x4_t halves = vmovn_s32(vreinterpretq_s32_f32(a));
    const int8x8_t bytes = vmovn_s16(vcombine_s16(halves, halves));
    __builtin_memcpy(p, &bytes, kLanes);
  }
  static Sums multiply(Sums a, Sums b) { return vmulq_s32(a, b); }
  static Sums add(Sums a, Sums b) { return vaddq_s32(a, b); }
  static Vec to_float(Sums a) { return vcvtq_f32_s32(a); }
  static constexpr int kDotOffset = 0;
  static Sums dot(Sums sums, Vec a, Vec b) {
    const uint8x16_t x = vreinterpretq_u8_f32(a);
    const int8x16_t y = vreinterpretq_s8_f32(b);
    // 255 * 128 fits 16 bits, signed.
    const int16x8_t low =
        vmulq_s16(vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(x))), vmovl_s8(vget_low_s8(y)));
    const int16x8_t high =
        vmulq_s16(vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(x))), vmovl_s8(vget_high_s8(y)));
    return vaddq_s32(sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
  }
  static Sums dot_nibbles(Sums sums, Vec a, Vec b) { return dot(sums, a, b); }
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
