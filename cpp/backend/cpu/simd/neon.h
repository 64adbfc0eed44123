#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "cpp/tensor/half.h"

// avx2.h says what the names mean.
namespace pagedcore::cpu::PAGEDCORE_ISA {

inline constexpr int kLanes = 4;
inline constexpr int kNumRegisters = 32;
inline constexpr bool kHasBf16Dot = false;
struct Bf16Dot;  // defined where kHasBf16Dot
using Vec = float32x4_t;

inline Vec zero() { return vdupq_n_f32(0.0f); }
inline Vec splat(float x) { return vdupq_n_f32(x); }
inline Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
inline Vec min(Vec a, Vec b) { return vminq_f32(a, b); }
inline Vec max(Vec a, Vec b) { return vmaxq_f32(a, b); }
inline Vec sqrt(Vec a) { return vsqrtq_f32(a); }
inline Vec round(Vec a) { return vrndnq_f32(a); }
inline Vec exp2_integral(Vec n) {
  const int32x4_t exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
  return vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23));
}
inline Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
  return vbslq_f32(vcltq_f32(a, b), yes, no);
}

inline float first_lane(Vec a) { return vgetq_lane_f32(a, 0); }
inline float sum(Vec a) {
  const float32x2_t x = vadd_f32(vget_low_f32(a), vget_high_f32(a));
  return vget_lane_f32(x, 0) + vget_lane_f32(x, 1);
}
inline void sum_each(const Vec (&a)[4], const Vec (&b)[4], float* out_a, float* out_b) {
  vst1q_f32(out_a, vpaddq_f32(vpaddq_f32(a[0], a[1]), vpaddq_f32(a[2], a[3])));
  vst1q_f32(out_b, vpaddq_f32(vpaddq_f32(b[0], b[1]), vpaddq_f32(b[2], b[3])));
}
inline float max_lane(Vec a) { return vmaxvq_f32(a); }

inline Vec load(const float* p) { return vld1q_f32(p); }
inline Vec load(const Float16* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits))); }
inline Vec load(const BFloat16* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16));
}

inline void store(float* p, Vec a) { vst1q_f32(p, a); }
inline void store(Float16* p, Vec a) { vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
inline void store(BFloat16* p, Vec a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  vst1_u16(&p->bits, vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), rounded, quiet), 16));
}

template <typename T>
inline Vec load_n(const T* p, int n) {
  T copy[kLanes] = {};
  for (int i = 0; i < n; ++i) copy[i] = p[i];
  return load(copy);
}
template <typename T>
inline void store_n(T* p, Vec a, int n) {
  T copy[kLanes];
  store(copy, a);
  for (int i = 0; i < n; ++i) p[i] = copy[i];
}

// Lane j of rows[i] becomes lane i of rows[j].
[[gnu::always_inline]] inline void transpose(Vec (&rows)[kLanes]) {
  const float32x4x2_t a = vtrnq_f32(rows[0], rows[1]);
  const float32x4x2_t b = vtrnq_f32(rows[2], rows[3]);
  rows[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
  rows[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
  rows[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
  rows[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}

inline void transpose_quads(Vec (&rows)[4]) { transpose(rows); }
inline Vec splat_quad(const void* p) {
  return vreinterpretq_f32_u8(vld1q_u8(static_cast<const std::uint8_t*>(p)));
}
inline Vec load_quads(const void* p, std::int64_t) { return splat_quad(p); }
template <typename T>
inline Vec gather_quads(const T* const (&groups)[1], std::int64_t i) {
  return splat_quad(groups[0] + i);
}

// Forced inline: a call to a function that only prefetches has no effect that GCC would keep.
[[gnu::always_inline]] inline void prefetch_l1(const void* p) { __builtin_prefetch(p, 0, 3); }
[[gnu::always_inline]] inline void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
